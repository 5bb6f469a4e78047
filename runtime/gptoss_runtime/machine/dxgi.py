"""Reads graphics adapters from DXGI and Direct3D 12 through ctypes. Importable everywhere; works on Windows.

Knows COM vtables and HRESULTs; adapters.py decides what the values mean. Source: dxgi.h, dxgi1_4.h and d3d12.h of the
Windows SDK.
"""

from __future__ import annotations

import contextlib
import ctypes
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptoss_runtime.machine import hardware

NOT_FOUND = 0x887A0002  # DXGI_ERROR_NOT_FOUND: no adapter with that index
LEVELS = {"12_2": 0xC200, "12_1": 0xC100, "12_0": 0xC000, "11_1": 0xB100, "11_0": 0xB000}  # D3D_FEATURE_LEVEL
_SOFTWARE = 2  # DXGI_ADAPTER_FLAG_SOFTWARE
_MAX_ADAPTERS = 64  # so that a driver that never returns NOT_FOUND cannot hang the process
# Indices into the vtables: IUnknown has 0 to 2, IDXGIObject 3 to 6
_QUERY_INTERFACE, _RELEASE = 0, 2
_CHECK_INTERFACE_SUPPORT, _GET_DESC1, _QUERY_VIDEO_MEMORY_INFO = 9, 10, 14  # IDXGIAdapter, 1 and 3
_ENUM_ADAPTERS1 = 12  # IDXGIFactory1


def _guid(text: str) -> Any:
    return (ctypes.c_ubyte * 16)(*uuid.UUID(text).bytes_le)


_FACTORY1 = _guid("770aae78-f26f-4dba-a829-253c83d1b387")
_ADAPTER3 = _guid("645967a4-1392-4310-a798-8053ce3e93fd")
_DEVICE = _guid("54ec77fa-1377-44e6-8c32-88fd5f44c84c")  # IDXGIDevice: the interface that reports the driver version
_DEVICE12 = _guid("189819f1-1db6-4b57-be54-1821339b85f7")  # ID3D12Device


class _Luid(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint32), ("high", ctypes.c_int32))


class _Desc1(ctypes.Structure):
    _fields_ = (
        ("description", ctypes.c_uint16 * 128),  # UTF-16; c_wchar has 32 bits on other systems
        *((name, ctypes.c_uint32) for name in ("vendor_id", "device_id", "subsystem_id", "revision")),
        *((name, ctypes.c_size_t) for name in ("dedicated_video", "dedicated_system", "shared")),
        ("luid", _Luid),
        ("flags", ctypes.c_uint32),
    )


class _MemoryInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("budget", "usage", "available", "reserved"))


@dataclass(frozen=True, slots=True)
class AdapterDescription:
    """One adapter as Windows describes it; memory in bytes.

    Attributes:
        name: its description.
        vendor_id: PCI vendor id, 0 if there is none.
        device_id: PCI device id.
        luid: (high, low) of the locally unique identifier, valid until Windows restarts.
        dedicated_memory: dedicated video memory plus the system memory that the firmware reserves for it.
        shared_memory: system memory that the adapter may also use.
        software: whether it renders on the CPU.
        driver: version of the user-mode driver, "a.b.c.d"; None: unknown.
        feature_level: the highest one for which Direct3D 12 creates a device, such as "12_1"; None: it creates none.
        error: HRESULT of the attempt with 11_0 if there is no feature level.
        budget: video memory that Windows currently grants this process; None: unknown.
        usage: how much of it this process currently uses; None: unknown.
    """

    name: str
    vendor_id: int
    device_id: int
    luid: tuple[int, int]
    dedicated_memory: int
    shared_memory: int
    software: bool
    driver: str | None
    feature_level: str | None
    error: int | None
    budget: int | None
    usage: int | None


def describe_adapters() -> list[AdapterDescription]:
    """Returns all adapters in DXGI's order; an empty list on other systems than Windows.

    Raises:
        OSError: DXGI failed.
    """
    return list(_enumerate_adapters()) if hardware.WINDOWS else []


def _enumerate_adapters() -> Iterator[AdapterDescription]:
    create = _load_library("dxgi").CreateDXGIFactory1
    factory = ctypes.c_void_p()
    _check(create(_FACTORY1, ctypes.byref(factory)), "CreateDXGIFactory1")
    with _releasing(factory):
        for index in range(_MAX_ADAPTERS):
            adapter = ctypes.c_void_p()
            result = _call(factory, _ENUM_ADAPTERS1, ctypes.c_uint32(index), ctypes.byref(adapter))
            if result == NOT_FOUND:
                return
            _check(result, "IDXGIFactory1::EnumAdapters1")
            with _releasing(adapter):
                yield _describe_adapter(adapter)


def _describe_adapter(adapter: Any) -> AdapterDescription:
    desc = _Desc1()
    _check(_call(adapter, _GET_DESC1, ctypes.byref(desc)), "IDXGIAdapter1::GetDesc1")
    level, error = _query_feature_level(adapter)
    budget, usage = _query_video_memory(adapter)
    return AdapterDescription(
        name=bytes(desc.description).decode("utf-16-le", "replace").split("\0", 1)[0].strip(),
        vendor_id=desc.vendor_id,
        device_id=desc.device_id,
        luid=(desc.luid.high, desc.luid.low),
        dedicated_memory=desc.dedicated_video + desc.dedicated_system,
        shared_memory=desc.shared,
        software=bool(desc.flags & _SOFTWARE),
        driver=_query_driver_version(adapter),
        feature_level=level,
        error=error,
        budget=budget,
        usage=usage,
    )


def _query_driver_version(adapter: Any) -> str | None:
    version = ctypes.c_int64()
    if _call(adapter, _CHECK_INTERFACE_SUPPORT, _DEVICE, ctypes.byref(version)) >= 1 << 31:
        return None
    return ".".join(str(version.value >> shift & 0xFFFF) for shift in (48, 32, 16, 0))


def _query_feature_level(adapter: Any) -> tuple[str | None, int | None]:
    try:
        create = _load_library("d3d12").D3D12CreateDevice
    except (OSError, AttributeError):  # before Windows 10
        return None, None
    result = 0
    for name, level in LEVELS.items():
        result = create(adapter, ctypes.c_int32(level), _DEVICE12, None) & 0xFFFFFFFF  # null: test only
        if result < 1 << 31:
            return name, None
    return None, result


def _query_video_memory(adapter: Any) -> tuple[int | None, int | None]:
    adapter3 = ctypes.c_void_p()
    if _call(adapter, _QUERY_INTERFACE, _ADAPTER3, ctypes.byref(adapter3)) >= 1 << 31:
        return None, None
    info, local = _MemoryInfo(), ctypes.c_int32(0)  # DXGI_MEMORY_SEGMENT_GROUP_LOCAL
    with _releasing(adapter3):
        result = _call(adapter3, _QUERY_VIDEO_MEMORY_INFO, ctypes.c_uint32(0), local, ctypes.byref(info))
    return (None, None) if result >= 1 << 31 else (info.budget, info.usage)


def _load_library(name: str) -> Any:
    return getattr(ctypes, "WinDLL")(name)  # noqa: B009  (mypy does not know WinDLL on other systems)


def _call(pointer: Any, index: int, *arguments: Any) -> int:
    """Calls a method by its vtable index and returns the HRESULT, unsigned.

    Raises:
        OSError: the pointer is null, although the call that returned it succeeded.
    """
    if not pointer:
        raise OSError("DXGI gave a null pointer")
    table = ctypes.cast(pointer, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))).contents
    function = ctypes.CFUNCTYPE(ctypes.c_int32)(table[index])  # 64-bit Windows has one calling convention
    return int(function(pointer, *arguments)) & 0xFFFFFFFF


def _check(result: int, what: str) -> None:
    if result & 0x80000000:
        raise OSError(f"{what}: HRESULT {result & 0xFFFFFFFF:08X}")


@contextlib.contextmanager
def _releasing(pointer: Any) -> Iterator[None]:
    try:
        yield
    finally:
        if pointer:
            _call(pointer, _RELEASE)
