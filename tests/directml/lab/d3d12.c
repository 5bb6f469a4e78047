/* d3d12.dll for Wine: Direct3D 12 for compute, over Debian's native libvkd3d.
 *
 * Wine 10's own d3d12.dll reaches Vulkan through a display, and its vkd3d is older than DXIL, the shader code that
 * DirectML brings along. Debian's libvkd3d.so.1 (2.1) wants no display and reads DXIL. This file is a "winelib" DLL:
 * a Linux shared object with a Windows export table (d3d12.spec), called by Windows programs, calling Linux libraries.
 *
 * It forwards, and does three things more. The second and third were tried without: DMLCreateDevice fails.
 *  1. one device a process for all who ask, as Windows does for an adapter; on lavapipe each costs seconds and memory;
 *  2. the device carries the LUID of the DXGI adapter it was asked for: DirectML finds the adapter back by it;
 *  3. IDXGIAdapter::CheckInterfaceSupport answers "yes": without a display, Wine's adapter is not 3D enough to.
 * It counts memory, see "Memory", and on request it misbehaves, see "Faults". It knows no swapchain and no display, and nothing of DirectML.
 */
#define COBJMACROS
#define INITGUID
#define VKD3D_NO_WIN32_TYPES /* Wine's headers have them, too, and DXGI besides */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#include <windows.h>
#include <d3d12.h>
#include <dxgi.h>
#include <vkd3d.h>

/* ---- Threads: vkd3d's have to be Windows threads, because they set Windows events. ----------------------------- */

struct start
{
    PFN_vkd3d_thread function;
    void *data;
};

static DWORD WINAPI thread_main(void *argument)
{
    struct start start = *(struct start *)argument;

    free(argument);
    start.function(start.data);
    return 0;
}

static void *create_thread(PFN_vkd3d_thread function, void *data)
{
    struct start *start = malloc(sizeof(*start));
    void *thread;

    if (!start)
        return NULL;
    *start = (struct start){function, data};
    /* Lavapipe compiles shaders on vkd3d's threads: Windows' 1 MB of stack would not do. */
    if (!(thread = CreateThread(NULL, 8 << 20, thread_main, start, STACK_SIZE_PARAM_IS_A_RESERVATION, NULL)))
        free(start);
    return thread;
}

static HRESULT join_thread(void *thread)
{
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
    return S_OK;
}

static HRESULT signal_event(HANDLE event)
{
    return SetEvent(event) ? S_OK : E_FAIL;
}

/* ---- Replacing methods: COM objects of a class share a table of functions, which is constant, hence mprotect. -- */

static void replace(void *slot, void *with, void *original)
{
    uintptr_t page = (uintptr_t)slot & ~(uintptr_t)4095;

    mprotect((void *)page, 4096, PROT_READ | PROT_WRITE);
    if (original && *(void **)slot != with)
        *(void **)original = *(void **)slot;
    *(void **)slot = with;
}

#define REPLACE(object, method, with, original) replace(&(object)->lpVtbl->method, with, original)

/* ---- The adapter, which is DXGI's ------------------------------------------------------------------------------ */

static HRESULT STDMETHODCALLTYPE supported(IDXGIAdapter *adapter, REFGUID iid, LARGE_INTEGER *driver_version)
{
    if (driver_version)
        driver_version->QuadPart = (LONGLONG)10 << 48; /* 10.0.0.0 */
    return S_OK;
}

static LUID adopt(IUnknown *unknown)
{
    DXGI_ADAPTER_DESC desc = {0};
    IDXGIAdapter *adapter;

    if (!unknown || FAILED(IUnknown_QueryInterface(unknown, &IID_IDXGIAdapter, (void **)&adapter)))
        return desc.AdapterLuid;
    IDXGIAdapter_GetDesc(adapter, &desc);
    REPLACE(adapter, CheckInterfaceSupport, supported, NULL);
    IDXGIAdapter_Release(adapter);
    return desc.AdapterLuid;
}

/* ---- Memory: what buffers and heaps take now and took at most, the GPU's and the system's (for transfers).
 * GPTOSS_LAB_MEMORY names a file of four uint64, mapped, so that whoever runs can read it at any moment. A resource
 * carries a small object that it releases when it goes. ----------------------------------------------------------- */

struct memory
{
    uint64_t live, peak;
};

static struct memory unseen[2], *memory = unseen; /* the GPU's, the system's */

static void show_memory(void)
{
    char name[160] = "";
    void *mapped;
    int file;

    if (!GetEnvironmentVariableA("GPTOSS_LAB_MEMORY", name, sizeof(name)))
        return;
    file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || ftruncate(file, sizeof(unseen)))
        abort();
    mapped = mmap(NULL, sizeof(unseen), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED)
        abort();
    memory = mapped;
}

struct tally
{
    IUnknown unknown;
    LONG references;
    struct memory *kind;
    uint64_t size;
};

static struct memory *kind_of(const D3D12_HEAP_PROPERTIES *heap)
{
    return &memory[heap->Type == D3D12_HEAP_TYPE_UPLOAD || heap->Type == D3D12_HEAP_TYPE_READBACK];
}

static HRESULT STDMETHODCALLTYPE tally_query(IUnknown *unknown, REFIID iid, void **out)
{
    *out = NULL;
    return E_NOINTERFACE;
}

static ULONG STDMETHODCALLTYPE tally_add(IUnknown *unknown)
{
    return InterlockedIncrement(&((struct tally *)unknown)->references);
}

static ULONG STDMETHODCALLTYPE tally_release(IUnknown *unknown)
{
    struct tally *tally = (struct tally *)unknown;
    LONG left = InterlockedDecrement(&tally->references);

    if (!left)
    {
        __atomic_sub_fetch(&tally->kind->live, tally->size, __ATOMIC_RELAXED);
        free(tally);
    }
    return left;
}

static const IUnknownVtbl tally_table = {tally_query, tally_add, tally_release};
static const GUID tally_id = {0x67707473, 0x6d65, 0x6d6f, {'r', 'y', 0, 0, 0, 0, 0, 1}};

/* Counts ``size`` until ``object`` goes; it has been added to what is live already. */
static void attach_tally(ID3D12Object *object, struct memory *kind, uint64_t size)
{
    struct tally *tally = malloc(sizeof(*tally));

    if (!tally)
        abort();
    *tally = (struct tally){{&tally_table}, 1, kind, size};
    if (FAILED(ID3D12Object_SetPrivateDataInterface(object, &tally_id, &tally->unknown)))
        abort();
    tally_release(&tally->unknown);
}

/* ---- Faults: GPTOSS_LAB_FAULT, read when the device is made; README.md says what each stands for. -------------- */

static struct
{
    BOOL nodevice, removable, removed;
    char unplug[128];         /* removed:/path, gone as soon as that file is there */
    long submissions;         /* removed:n, gone after n submissions; -1 without limit */
    D3D_FEATURE_LEVEL level;  /* feature-level:b000, in hexadecimal; 0 without limit */
    uint64_t memory;          /* memory:n in MiB, as bytes */
} fault = {.memory = ~(uint64_t)0};

static void read_fault(void)
{
    char text[160] = "", argument[128] = "";

    GetEnvironmentVariableA("GPTOSS_LAB_FAULT", text, sizeof(text));
    sscanf(text, "%*[^:]:%127s", argument);
    if (!strcmp(text, "nodevice"))
        fault.nodevice = TRUE;
    else if (!strncmp(text, "feature-level:", 14))
        fault.level = strtoul(argument, NULL, 16);
    else if (!strncmp(text, "memory:", 7))
        fault.memory = strtoull(argument, NULL, 10) << 20;
    else if (!strncmp(text, "removed:", 8))
    {
        fault.removable = TRUE;
        fault.submissions = argument[0] == '/' ? -1 : strtol(argument, NULL, 10);
        if (argument[0] == '/')
            strcpy(fault.unplug, argument);
    }
    else if (text[0])
    {
        fprintf(stderr, "d3d12: GPTOSS_LAB_FAULT=%s is no fault this lab knows\n", text);
        abort(); /* a test that asks for a fault and gets none would prove nothing */
    }
}

static BOOL removed(void)
{
    FILE *file;

    if (!fault.removed && fault.unplug[0] && (file = fopen(fault.unplug, "r")))
    {
        fclose(file);
        fault.removed = TRUE;
    }
    return fault.removed;
}

static HRESULT may_allocate(struct memory *kind, uint64_t size)
{
    uint64_t live;

    if (removed())
        return DXGI_ERROR_DEVICE_REMOVED;
    live = __atomic_add_fetch(&kind->live, size, __ATOMIC_RELAXED);
    if (kind == memory && live > fault.memory)
    {
        __atomic_sub_fetch(&kind->live, size, __ATOMIC_RELAXED);
        return E_OUTOFMEMORY;
    }
    if (live > kind->peak)
        kind->peak = live;
    return S_OK;
}

/* The end of an allocation that may_allocate allowed. */
static HRESULT allocated(HRESULT hr, struct memory *kind, uint64_t size, void **out)
{
    if (SUCCEEDED(hr) && out)
        attach_tally(*out, kind, size);
    else
        __atomic_sub_fetch(&kind->live, size, __ATOMIC_RELAXED);
    return hr;
}

static struct ID3D12DeviceVtbl device_was; /* only the members that REPLACE filled */
static struct ID3D12CommandQueueVtbl queue_was;

static HRESULT STDMETHODCALLTYPE get_removed_reason(ID3D12Device *device)
{
    return removed() ? DXGI_ERROR_DEVICE_REMOVED : device_was.GetDeviceRemovedReason(device);
}

static HRESULT STDMETHODCALLTYPE create_committed(ID3D12Device *device, const D3D12_HEAP_PROPERTIES *properties,
        D3D12_HEAP_FLAGS flags, const D3D12_RESOURCE_DESC *desc, D3D12_RESOURCE_STATES state,
        const D3D12_CLEAR_VALUE *clear, REFIID iid, void **out)
{
    struct memory *kind = kind_of(properties);
    HRESULT hr = may_allocate(kind, desc->Width); /* buffers: DirectML has no textures */

    if (FAILED(hr))
        return hr;
    hr = device_was.CreateCommittedResource(device, properties, flags, desc, state, clear, iid, out);
    return allocated(hr, kind, desc->Width, out);
}

static HRESULT STDMETHODCALLTYPE create_heap(ID3D12Device *device, const D3D12_HEAP_DESC *desc, REFIID iid, void **out)
{
    struct memory *kind = kind_of(&desc->Properties);
    HRESULT hr = may_allocate(kind, desc->SizeInBytes);

    return FAILED(hr) ? hr : allocated(device_was.CreateHeap(device, desc, iid, out), kind, desc->SizeInBytes, out);
}

static HRESULT STDMETHODCALLTYPE check_feature(ID3D12Device *device, D3D12_FEATURE feature, void *data, UINT size)
{
    HRESULT hr = device_was.CheckFeatureSupport(device, feature, data, size);
    D3D12_FEATURE_DATA_FEATURE_LEVELS *levels = data;

    if (SUCCEEDED(hr) && feature == D3D12_FEATURE_FEATURE_LEVELS && levels->MaxSupportedFeatureLevel > fault.level)
        levels->MaxSupportedFeatureLevel = fault.level;
    return hr;
}

static void STDMETHODCALLTYPE execute(ID3D12CommandQueue *queue, UINT count, ID3D12CommandList *const *lists)
{
    if (!fault.unplug[0] && __atomic_sub_fetch(&fault.submissions, 1, __ATOMIC_RELAXED) < 0)
        fault.removed = TRUE;
    if (!removed())
        queue_was.ExecuteCommandLists(queue, count, lists);
}

static HRESULT STDMETHODCALLTYPE signal_fence(ID3D12CommandQueue *queue, ID3D12Fence *fence, UINT64 value)
{
    if (!removed())
        return queue_was.Signal(queue, fence, value);
    ID3D12Fence_Signal(fence, ~(UINT64)0); /* as Windows: nobody is to wait for a device that is gone */
    return DXGI_ERROR_DEVICE_REMOVED;
}

static void plant(ID3D12Device *device)
{
    D3D12_COMMAND_QUEUE_DESC desc = {.Type = D3D12_COMMAND_LIST_TYPE_COMPUTE};
    ID3D12CommandQueue *queue;

    if (fault.level)
        REPLACE(device, CheckFeatureSupport, check_feature, &device_was.CheckFeatureSupport);
    REPLACE(device, CreateCommittedResource, create_committed, &device_was.CreateCommittedResource);
    REPLACE(device, CreateHeap, create_heap, &device_was.CreateHeap);
    if (!fault.removable)
        return;
    REPLACE(device, GetDeviceRemovedReason, get_removed_reason, &device_was.GetDeviceRemovedReason);
    if (FAILED(ID3D12Device_CreateCommandQueue(device, &desc, &IID_ID3D12CommandQueue, (void **)&queue)))
        abort();
    REPLACE(queue, ExecuteCommandLists, execute, &queue_was.ExecuteCommandLists);
    REPLACE(queue, Signal, signal_fence, &queue_was.Signal);
    ID3D12CommandQueue_Release(queue);
}

/* ---- The device ------------------------------------------------------------------------------------------------ */

static HRESULT make_device(LUID luid, ID3D12Device **device)
{
    struct vkd3d_application_info application = {
        .type = VKD3D_STRUCTURE_TYPE_APPLICATION_INFO,
        .api_version = VKD3D_API_VERSION_2_1,
    };
    struct vkd3d_instance_create_info instance = {
        .type = VKD3D_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
        .next = &application,
        .pfn_signal_event = signal_event,
        .pfn_create_thread = create_thread,
        .pfn_join_thread = join_thread,
        .wchar_size = sizeof(WCHAR),
    };
    struct vkd3d_device_create_info info = {
        .type = VKD3D_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
        .minimum_feature_level = D3D_FEATURE_LEVEL_11_0,
        .instance_create_info = &instance,
        .adapter_luid = luid,
    };
    HRESULT hr;

    if (FAILED(hr = vkd3d_create_device(&info, &IID_ID3D12Device, (void **)device)))
    {
        fprintf(stderr, "d3d12: vkd3d_create_device: %08x; is there a Vulkan driver?\n", (unsigned int)hr);
        return hr;
    }
    plant(*device);
    return hr;
}

HRESULT WINAPI D3D12CreateDevice(IUnknown *adapter, D3D_FEATURE_LEVEL level, REFIID iid, void **out)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static ID3D12Device *device;
    HRESULT hr = S_OK;

    pthread_mutex_lock(&mutex);
    if (!device)
    {
        read_fault();
        show_memory();
    }
    if (fault.nodevice || (fault.level && level > fault.level))
        hr = DXGI_ERROR_UNSUPPORTED;
    else if (!device)
        hr = make_device(adopt(adapter), &device);
    pthread_mutex_unlock(&mutex);
    if (FAILED(hr))
        return hr;
    return out ? ID3D12Device_QueryInterface(device, iid, out) : S_FALSE; /* S_FALSE: it would work */
}

/* ---- Forwarded, or politely declined --------------------------------------------------------------------------- */

HRESULT WINAPI D3D12SerializeRootSignature(const D3D12_ROOT_SIGNATURE_DESC *desc, D3D_ROOT_SIGNATURE_VERSION version,
        ID3DBlob **blob, ID3DBlob **error)
{
    return vkd3d_serialize_root_signature(desc, version, blob, error);
}

HRESULT WINAPI D3D12SerializeVersionedRootSignature(const D3D12_VERSIONED_ROOT_SIGNATURE_DESC *desc, ID3DBlob **blob,
        ID3DBlob **error)
{
    return vkd3d_serialize_versioned_root_signature(desc, blob, error);
}

HRESULT WINAPI D3D12CreateRootSignatureDeserializer(const void *data, SIZE_T size, REFIID iid, void **out)
{
    return vkd3d_create_root_signature_deserializer(data, size, iid, out);
}

HRESULT WINAPI D3D12CreateVersionedRootSignatureDeserializer(const void *data, SIZE_T size, REFIID iid, void **out)
{
    return vkd3d_create_versioned_root_signature_deserializer(data, size, iid, out);
}

HRESULT WINAPI D3D12GetDebugInterface(REFIID iid, void **out)
{
    return E_NOTIMPL;
}

HRESULT WINAPI D3D12GetInterface(const GUID *class, REFIID iid, void **out)
{
    return E_NOTIMPL;
}

HRESULT WINAPI D3D12EnableExperimentalFeatures(UINT count, const IID *features, void *configurations, UINT *sizes)
{
    return E_NOINTERFACE;
}

BOOL WINAPI DllMain(HMODULE module, DWORD reason, void *reserved)
{
    return TRUE;
}
