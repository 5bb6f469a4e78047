"""Graphics adapters: which there are, which to use, and what a failing one is trying to say.

Knows what DirectML needs of an adapter; the questions to Windows are dxgi.py's. An adapter's index is genai's
``device_index``: of those that are not software, in DXGI's order (v0.13.1, src/dml/dml_helpers.cpp). It is not always
onnxruntime's ``device_id``, which counts software as well.
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

_VENDORS = {0x10DE: "NVIDIA", 0x1002: "AMD", 0x8086: "Intel", 0x1414: "Microsoft", 0x5143: "Qualcomm"}
_VENDORS[0x4D4F4351] = "Qualcomm"  # by ACPI ("QCOM"); the other is PCI's
_BASIC_RENDER_DRIVER = (0x1414, 0x8C)  # software, flagged or not; genai looks at the same
_MOST_DIGITS = 9  # of an index
_QUOTED = 300  # characters of a native text that a message repeats


@dataclass(frozen=True, slots=True)
class Adapter:
    """A graphics adapter; memory in bytes.

    Attributes:
        index: among those that are not software, from 0; -1 for software.
        name: as Windows shows it.
        vendor: "NVIDIA", "AMD", "Intel", "Microsoft", "Qualcomm" or the PCI id in hexadecimal.
        luid: "high:low", as genai's ``luid`` option takes it.
        dedicated_memory: its own.
        shared_memory: the system's, that it may use as well.
        software: a renderer on the CPU.
        driver: version, "a.b.c.d".
        feature_level: Direct3D's, such as "12_1"; None: no device, so no DirectML.
        budget: of memory for this process, as Windows sees it now.
        usage: of that by this process now.
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
        """Whether DirectML runs on it."""
        return self.feature_level is not None and not self.software

    @property
    def memory(self) -> int:
        """Bytes a model may take: its own memory, or where it has next to none the system's that it shares."""
        return self.dedicated_memory if self.dedicated_memory >= self.shared_memory // 8 else self.shared_memory


def adapters() -> list[Adapter]:
    """All adapters, in DXGI's order; none where there is no Windows.

    Raises:
        DeviceError: DXGI failed.
    """
    try:
        described = dxgi.describe()
    except OSError as error:
        raise DeviceError(f"listing graphics adapters: {error}", remedy="Reinstall the graphics driver.") from error
    result, before = [], 0
    for one in described:
        high, low = one.luid
        software = one.software or (one.vendor_id, one.device_id) == _BASIC_RENDER_DRIVER
        result.append(
            Adapter(
                index=-1 if software else before,
                name=one.name or "(no name)",
                vendor=_VENDORS.get(one.vendor_id, f"{one.vendor_id:04x}"),
                luid=f"{high}:{low - (1 << 32) if low >= 1 << 31 else low}",  # genai's std::stol has 32 bits, signed
                dedicated_memory=one.dedicated_memory,
                shared_memory=one.shared_memory,
                software=software,
                driver=one.driver,
                feature_level=one.feature_level,
                budget=one.budget,
                usage=one.usage,
            )
        )
        before += not software
    return result


def choose(found: Sequence[Adapter], wanted: int | str | None = None) -> Adapter:
    """The adapter to run on.

    Args:
        found: all adapters.
        wanted: an index, a LUID ("high:low") or a part of a name in any case; ``None``: the usable one with the most
            memory of its own, which an integrated GPU has little of however much it shares.

    Raises:
        NoAdapter: there is none but software, or none that is meant.
        DriverTooOld: the one that is meant, or each of them, has no feature level 11_0.
        InvalidRequest: several are meant.
    """
    physical = [adapter for adapter in found if not adapter.software]
    if not physical:
        raise _none(found)
    if wanted is None:
        usable = [adapter for adapter in physical if adapter.usable]
        if not usable:
            raise _too_old(physical[0])
        return max(usable, key=lambda adapter: (adapter.dedicated_memory, adapter.shared_memory, -adapter.index))
    meant = [adapter for adapter in physical if _is_meant(adapter, wanted)]
    if len(meant) != 1:
        there = "; ".join(f"{adapter.index}: {adapter.name} (LUID {adapter.luid})" for adapter in meant or physical)
        remedy = f"Name one of these by index or LUID: {there}."
        if meant:
            raise InvalidRequest(f"{str(wanted)[:80]!r} means several adapters", remedy=remedy)
        raise NoAdapter(f"{str(wanted)[:80]!r} is no adapter here", remedy=remedy)
    if not meant[0].usable:
        raise _too_old(meant[0])
    return meant[0]


def _is_meant(adapter: Adapter, wanted: int | str) -> bool:
    text = str(wanted).strip()
    if text.isdecimal():
        return len(text) <= _MOST_DIGITS and adapter.index == int(text)
    return text == adapter.luid or (text != "" and text.casefold() in adapter.name.casefold())


def _none(found: Sequence[Adapter]) -> NoAdapter:
    if found:
        names = ", ".join(adapter.name for adapter in found)
        remedy = "Install the graphics driver; a remote session or a virtual machine may hide the GPU. Or use the CPU."
        return NoAdapter(f"only software adapters, which DirectML does not take: {names}", remedy=remedy)
    if hardware.WINDOWS:
        return NoAdapter(
            "Windows lists no graphics adapter", remedy="Install a graphics driver, or use --provider cpu."
        )
    return NoAdapter("DirectML needs Windows", remedy="Use --provider cpu here.")


def _too_old(adapter: Adapter) -> DriverTooOld:
    return DriverTooOld(
        f"{adapter.name}: Direct3D 12 makes no device of feature level 11_0 (driver {adapter.driver or 'unknown'})",
        remedy="Update the graphics driver from its maker's page; or use --provider cpu.",
    )


_LOST = (
    DeviceLost,
    "the graphics adapter was reset, removed or its driver updated",
    "Load the model again in a new process; if it happens again, update the driver or stop overclocking.",
)
_NO_DEVICE = (
    NoAdapter,
    "Direct3D 12 has no device to give",
    "Update the graphics driver; gptoss doctor shows adapters. Or use --provider cpu.",
)
_FULL = (
    ResourceError,
    "the adapter's memory does not suffice",
    "Close what uses the GPU, or load with a smaller context_length; gptoss doctor DIR shows what fits.",
)
# By HRESULT or its name. 887A0002 and C0262002 come from onnxruntime: no such index, and one that is software.
_MEANINGS: dict[str, tuple[type[GptOssError], str, str]] = {
    r"887A000[567]|887A0020|(?:DXGI_ERROR_)?DEVICE_(?:REMOVED|HUNG|RESET)|DXGI_ERROR_DRIVER_INTERNAL_ERROR": _LOST,
    r"device (?:instance )?has been suspended": _LOST,
    r"8007000E|E_OUTOFMEMORY|887A0030": _FULL,
    r"887A0004|DXGI_ERROR_UNSUPPORTED|887A0002|C0262002|No adapter is available": _NO_DEVICE,
}
# A code that is part of a longer number is none: native texts are full of addresses.
_CODE = re.compile(rf"(?<!\w)(?:0x)?(?:{'|'.join(f'({pattern})' for pattern in _MEANINGS)})(?!\w)", re.IGNORECASE)


def explained(doing: str, text: str) -> GptOssError | None:
    """The error that a native message stands for, by the first HRESULT in it; None for those that say nothing of it.

    Args:
        doing: what was being done.
        text: what the library said.

    Returns:
        To be raised from the native error: ``DeviceLost``, ``NoAdapter`` or ``ResourceError``.
    """
    found = _CODE.search(text)
    if found is None or found.lastindex is None:
        return None
    kind, meaning, remedy = list(_MEANINGS.values())[found.lastindex - 1]
    said = " ".join(text.split())
    if len(said) > _QUOTED:
        said = f"{said[:_QUOTED]} ... {found[0]}"
    return kind(f"{doing}: {meaning} ({said})", remedy=remedy)
