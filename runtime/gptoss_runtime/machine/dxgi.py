"""DXGI and Direct3D 12 by ctypes: what Windows says of each graphics adapter. Imports anywhere, works on Windows.

Knows COM's tables of functions and HRESULTs; judges nothing, adapters.py does. Source: dxgi.h, dxgi1_4.h and d3d12.h of
the Windows SDK.
"""

from __future__ import annotations

import contextlib
import ctypes
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptoss_runtime.machine import hardware

NOT_FOUND = 0x887A0002  # DXGI_ERROR_NOT_FOUND: no adapter of that index
LEVELS = {"12_2": 0xC200, "12_1": 0xC100, "12_0": 0xC000, "11_1": 0xB100, "11_0": 0xB000}  # D3D_FEATURE_LEVEL
_SOFTWARE = 2  # DXGI_ADAPTER_FLAG_SOFTWARE
_MOST = 64  # adapters; a driver that never says NOT_FOUND must not hang anybody
# Places in the tables: IUnknown has 0 to 2, IDXGIObject 3 to 6
_QUERY_INTERFACE, _RELEASE = 0, 2
_CHECK_INTERFACE_SUPPORT, _GET_DESC1, _QUERY_VIDEO_MEMORY_INFO = 9, 10, 14  # IDXGIAdapter, 1 and 3
_ENUM_ADAPTERS1 = 12  # IDXGIFactory1


def _guid(text: str) -> Any:
    return (ctypes.c_ubyte * 16)(*uuid.UUID(text).bytes_le)


_FACTORY1 = _guid("770aae78-f26f-4dba-a829-253c83d1b387")
_ADAPTER3 = _guid("645967a4-1392-4310-a798-8053ce3e93fd")
_DEVICE = _guid("54ec77fa-1377-44e6-8c32-88fd5f44c84c")  # IDXGIDevice, whose support tells the driver's version
_DEVICE12 = _guid("189819f1-1db6-4b57-be54-1821339b85f7")  # ID3D12Device


class _Luid(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint32), ("high", ctypes.c_int32))


class _Desc1(ctypes.Structure):
    _fields_ = (
        ("description", ctypes.c_uint16 * 128),  # UTF-16; c_wchar is wider elsewhere
        *((name, ctypes.c_uint32) for name in ("vendor_id", "device_id", "subsystem_id", "revision")),
        *((name, ctypes.c_size_t) for name in ("dedicated_video", "dedicated_system", "shared")),
        ("luid", _Luid),
        ("flags", ctypes.c_uint32),
    )


class _MemoryInfo(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("budget", "usage", "available", "reserved"))


@dataclass(frozen=True, slots=True)
class Described:
    """One adapter as Windows describes it; memory in bytes.

    Attributes:
        name: its description.
        vendor_id: PCI vendor, 0 where there is none.
        device_id: PCI device.
        luid: (high, low) of its locally unique identifier, good until the next start of Windows.
        dedicated_memory: its own video memory, and what the firmware sets aside of the system's for it.
        shared_memory: the system's, that it may use as well.
        software: a renderer on the CPU.
        driver: the user-mode driver's version, "a.b.c.d".
        feature_level: the highest with which Direct3D 12 makes a device, such as "12_1"; None: it makes none.
        error: HRESULT of the attempt at 11_0, where there is no feature level.
        budget: of video memory for this process now, where Windows tells.
        usage: of that by this process now.
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


def describe() -> list[Described]:
    """All adapters in DXGI's order; none where there is no Windows.

    Raises:
        OSError: DXGI itself failed.
    """
    return list(_described()) if hardware.WINDOWS else []


def _described() -> Iterator[Described]:
    create = _library("dxgi").CreateDXGIFactory1
    factory = ctypes.c_void_p()
    _check(create(_FACTORY1, ctypes.byref(factory)), "CreateDXGIFactory1")
    with _released(factory):
        for index in range(_MOST):
            adapter = ctypes.c_void_p()
            result = _call(factory, _ENUM_ADAPTERS1, ctypes.c_uint32(index), ctypes.byref(adapter))
            if result == NOT_FOUND:
                return
            _check(result, "IDXGIFactory1::EnumAdapters1")
            with _released(adapter):
                yield _one(adapter)


def _one(adapter: Any) -> Described:
    desc = _Desc1()
    _check(_call(adapter, _GET_DESC1, ctypes.byref(desc)), "IDXGIAdapter1::GetDesc1")
    level, error = _feature_level(adapter)
    budget, usage = _video_memory(adapter)
    return Described(
        name=bytes(desc.description).decode("utf-16-le", "replace").split("\0", 1)[0].strip(),
        vendor_id=desc.vendor_id,
        device_id=desc.device_id,
        luid=(desc.luid.high, desc.luid.low),
        dedicated_memory=desc.dedicated_video + desc.dedicated_system,
        shared_memory=desc.shared,
        software=bool(desc.flags & _SOFTWARE),
        driver=_driver(adapter),
        feature_level=level,
        error=error,
        budget=budget,
        usage=usage,
    )


def _driver(adapter: Any) -> str | None:
    version = ctypes.c_int64()
    if _call(adapter, _CHECK_INTERFACE_SUPPORT, _DEVICE, ctypes.byref(version)) >= 1 << 31:
        return None
    return ".".join(str(version.value >> shift & 0xFFFF) for shift in (48, 32, 16, 0))


def _feature_level(adapter: Any) -> tuple[str | None, int | None]:
    try:
        create = _library("d3d12").D3D12CreateDevice
    except (OSError, AttributeError):  # before Windows 10
        return None, None
    result = 0
    for name, level in LEVELS.items():
        result = create(adapter, ctypes.c_int32(level), _DEVICE12, None) & 0xFFFFFFFF  # no pointer: only asked
        if result < 1 << 31:
            return name, None
    return None, result


def _video_memory(adapter: Any) -> tuple[int | None, int | None]:
    newer = ctypes.c_void_p()
    if _call(adapter, _QUERY_INTERFACE, _ADAPTER3, ctypes.byref(newer)) >= 1 << 31:
        return None, None
    info, local = _MemoryInfo(), ctypes.c_int32(0)  # DXGI_MEMORY_SEGMENT_GROUP_LOCAL
    with _released(newer):
        result = _call(newer, _QUERY_VIDEO_MEMORY_INFO, ctypes.c_uint32(0), local, ctypes.byref(info))
    return (None, None) if result >= 1 << 31 else (info.budget, info.usage)


def _library(name: str) -> Any:
    return getattr(ctypes, "WinDLL")(name)  # noqa: B009  (mypy elsewhere knows no WinDLL)


def _call(pointer: Any, place: int, *arguments: Any) -> int:
    """Calls a method by its place in the object's table; the HRESULT, unsigned.

    Raises:
        OSError: there is no object, whatever the HRESULT was that came with it.
    """
    if not pointer:
        raise OSError("DXGI gave a null pointer")
    table = ctypes.cast(pointer, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))).contents
    function = ctypes.CFUNCTYPE(ctypes.c_int32)(table[place])  # Windows on 64 bits has one calling convention
    return int(function(pointer, *arguments)) & 0xFFFFFFFF


def _check(result: int, what: str) -> None:
    if result & 0x80000000:
        raise OSError(f"{what}: HRESULT {result & 0xFFFFFFFF:08X}")


@contextlib.contextmanager
def _released(pointer: Any) -> Iterator[None]:
    try:
        yield
    finally:
        if pointer:
            _call(pointer, _RELEASE)
