"""Lists graphics adapters, chooses one for DirectML, and explains native error messages about them.

dxgi.py queries Windows; this module decides what DirectML can use. An adapter's index is genai's ``device_index``: its
position in DXGI's order among the hardware adapters (v0.13.1, src/dml/dml_helpers.cpp). It can differ from
onnxruntime's ``device_id``, which counts software adapters as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gptoss_runtime.errors import (
    DeviceError,
    DeviceLost,
    DriverTooOld,
    GptOssError,
    InvalidRequest,
    NoAdapter,
    ResourceError,
)
from gptoss_runtime.machine import dxgi, hardware
from gptoss_runtime.machine.installed import USE_CPU_ARTIFACT

_VENDORS = {0x10DE: "NVIDIA", 0x1002: "AMD", 0x8086: "Intel", 0x1414: "Microsoft", 0x5143: "Qualcomm"}
_VENDORS[0x4D4F4351] = "Qualcomm"  # the ACPI id, "QCOM"; the one above is the PCI id
_BASIC_RENDER_DRIVER = (0x1414, 0x8C)  # a software renderer even without the flag; genai tests the same ids
_MAX_DIGITS = 9  # of an index
_MAX_QUOTED = 300  # characters of a native message that ours repeats


@dataclass(frozen=True, slots=True)
class Adapter:
    """A graphics adapter; memory in bytes.

    Attributes:
        index: position among the hardware adapters, from 0; -1 for a software adapter.
        name: as Windows shows it.
        vendor: "NVIDIA", "AMD", "Intel", "Microsoft", "Qualcomm" or the PCI id in hexadecimal.
        luid: "high:low", as genai's ``luid`` option takes it.
        dedicated_memory: video memory of the adapter itself.
        shared_memory: system memory that the adapter may also use.
        software: whether it renders on the CPU.
        driver: version, "a.b.c.d".
        feature_level: Direct3D feature level, such as "12_1"; None: no Direct3D 12 device, so no DirectML.
        budget: memory that Windows currently grants this process.
        usage: how much of it this process currently uses.
    """

    index: int
    name: str
    vendor: str
    luid: str
    dedicated_memory: int
    shared_memory: int
    software: bool
    driver: str | None
    feature_level: str | None
    budget: int | None = None
    usage: int | None = None

    @property
    def usable(self) -> bool:
        """Whether DirectML can run on it."""
        return self.feature_level is not None and not self.software

    @property
    def memory(self) -> int:
        """Bytes a model may use: dedicated memory, or shared memory if the adapter has hardly any of its own."""
        return self.dedicated_memory if self.dedicated_memory >= self.shared_memory // 8 else self.shared_memory


def list_adapters() -> list[Adapter]:
    """Returns all adapters in DXGI's order; an empty list on other systems than Windows.

    Raises:
        DeviceError: DXGI failed.
    """
    try:
        descriptions = dxgi.describe_adapters()
    except OSError as error:
        raise DeviceError(f"listing graphics adapters: {error}", remedy="Reinstall the graphics driver.") from error
    result, hardware_count = [], 0
    for one in descriptions:
        high, low = one.luid
        software = one.software or (one.vendor_id, one.device_id) == _BASIC_RENDER_DRIVER
        result.append(
            Adapter(
                index=-1 if software else hardware_count,
                name=one.name or "(no name)",
                vendor=_VENDORS.get(one.vendor_id, f"{one.vendor_id:04x}"),
                luid=f"{high}:{low - (1 << 32) if low >= 1 << 31 else low}",  # genai parses a signed 32-bit std::stol
                dedicated_memory=one.dedicated_memory,
                shared_memory=one.shared_memory,
                software=software,
                driver=one.driver,
                feature_level=one.feature_level,
                budget=one.budget,
                usage=one.usage,
            )
        )
        hardware_count += not software
    return result


def choose_adapter(found: Sequence[Adapter], wanted: int | str | None = None) -> Adapter:
    """Chooses the adapter to run on.

    Args:
        found: all adapters.
        wanted: an index, a LUID ("high:low") or part of a name, ignoring case; ``None``: the usable adapter with the
            most dedicated memory, so that an integrated GPU does not win by the system memory that it shares.

    Raises:
        NoAdapter: there are only software adapters, or none matches ``wanted``.
        DriverTooOld: the matching adapter, or every hardware adapter, lacks feature level 11_0.
        InvalidRequest: several adapters match ``wanted``.
    """
    physical = [adapter for adapter in found if not adapter.software]
    if not physical:
        raise _no_hardware_error(found)
    if wanted is None:
        usable = [adapter for adapter in physical if adapter.usable]
        if not usable:
            raise _driver_error(physical[0])
        return max(usable, key=lambda adapter: (adapter.dedicated_memory, adapter.shared_memory, -adapter.index))
    matches = [adapter for adapter in physical if _matches(adapter, wanted)]
    if len(matches) != 1:
        listing = "; ".join(f"{adapter.index}: {adapter.name} (LUID {adapter.luid})" for adapter in matches or physical)
        remedy = f"Name one of these by index or LUID: {listing}."
        if matches:
            raise InvalidRequest(f"{str(wanted)[:80]!r} matches several adapters", remedy=remedy)
        raise NoAdapter(f"no adapter here matches {str(wanted)[:80]!r}", remedy=remedy)
    if not matches[0].usable:
        raise _driver_error(matches[0])
    return matches[0]


def _matches(adapter: Adapter, wanted: int | str) -> bool:
    text = str(wanted).strip()
    if text.isdecimal():
        return len(text) <= _MAX_DIGITS and adapter.index == int(text)
    return text == adapter.luid or (text != "" and text.casefold() in adapter.name.casefold())


def _no_hardware_error(found: Sequence[Adapter]) -> NoAdapter:
    if found:
        names = ", ".join(adapter.name for adapter in found)
        return NoAdapter(
            f"there are only software adapters, which DirectML does not use: {names}",
            remedy="Install the graphics driver; a remote session or a virtual machine can hide the GPU. Or "
            f"{USE_CPU_ARTIFACT}.",
        )
    if hardware.WINDOWS:
        return NoAdapter(
            "Windows lists no graphics adapter", remedy=f"Install a graphics driver, or {USE_CPU_ARTIFACT}."
        )
    return NoAdapter("DirectML needs Windows", remedy=f"On this system, {USE_CPU_ARTIFACT}.")


def _driver_error(adapter: Adapter) -> DriverTooOld:
    return DriverTooOld(
        f"{adapter.name}: no Direct3D 12 device with feature level 11_0 (driver {adapter.driver or 'unknown'})",
        remedy=f"Update the graphics driver from the manufacturer's site, or {USE_CPU_ARTIFACT}.",
    )


_LOST = (
    DeviceLost,
    "the graphics adapter was reset or removed, or its driver was updated",
    "Load the model again in a new process. If this recurs, update the driver or undo overclocking.",
)
_NO_DEVICE = (
    NoAdapter,
    "Direct3D 12 could not create a device",
    f"Update the graphics driver (gptoss doctor lists the adapters), or {USE_CPU_ARTIFACT}.",
)
_FULL = (
    ResourceError,
    "the adapter is out of memory",
    "Close programs that use the GPU, or load with a smaller context_length; gptoss doctor MODEL shows what fits.",
)
# By HRESULT or its name. onnxruntime returns 887A0002 for an unknown index and C0262002 for a software adapter.
_MEANINGS: dict[str, tuple[type[GptOssError], str, str]] = {
    r"887A000[567]|887A0020|(?:DXGI_ERROR_)?DEVICE_(?:REMOVED|HUNG|RESET)|DXGI_ERROR_DRIVER_INTERNAL_ERROR": _LOST,
    r"device (?:instance )?has been suspended": _LOST,
    r"8007000E|E_OUTOFMEMORY|887A0030": _FULL,
    r"887A0004|DXGI_ERROR_UNSUPPORTED|887A0002|C0262002|No adapter is available": _NO_DEVICE,
}
# The code must stand alone: native messages contain addresses with the same digits in them.
_CODE = re.compile(rf"(?<!\w)(?:0x)?(?:{'|'.join(f'({pattern})' for pattern in _MEANINGS)})(?!\w)", re.IGNORECASE)


def explain_native_error(doing: str, text: str) -> GptOssError | None:
    """Maps a native error message to one of our errors by the first known HRESULT in it.

    Args:
        doing: the operation that failed, such as "loading the model"; starts the new message.
        text: the native message.

    Returns:
        A ``DeviceLost``, ``NoAdapter`` or ``ResourceError`` to raise from the native error; None if the message has no
        known code.
    """
    found = _CODE.search(text)
    if found is None or found.lastindex is None:
        return None
    kind, meaning, remedy = list(_MEANINGS.values())[found.lastindex - 1]
    quoted = " ".join(text.split())
    if len(quoted) > _MAX_QUOTED:
        quoted = f"{quoted[:_MAX_QUOTED]} ... {found[0]}"
    return kind(f"{doing}: {meaning} ({quoted})", remedy=remedy)
