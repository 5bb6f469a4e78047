"""Graphics adapters: which there are, which to use, and what a failing one is trying to say.

Knows what DirectML needs of an adapter; the questions to Windows are dxgi.py's. An adapter's index is genai's
``device_index``: of those that are not software, in DXGI's order (v0.13.1, src/dml/dml_helpers.cpp).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from gptoss_runtime import dxgi
from gptoss_runtime.errors import BackendError, DeviceLost, DriverTooOld, GptOssError, NoAdapter, ResourceError

_VENDORS = {0x10DE: "NVIDIA", 0x1002: "AMD", 0x8086: "Intel", 0x1414: "Microsoft", 0x4D4F4351: "Qualcomm"}
_REMOVED = re.compile(
    r"887A000[567]|887A0020|DEVICE_(?:REMOVED|HUNG|RESET)|device (?:instance )?has been suspended", re.I
)
_UNSUPPORTED = re.compile(r"887A0004|DXGI_ERROR_UNSUPPORTED|No adapter is available", re.I)
_MEMORY = re.compile(r"8007000E|E_OUTOFMEMORY|887A0030", re.I)


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
        BackendError: DXGI failed.
    """
    try:
        described = dxgi.describe()
    except OSError as error:
        raise BackendError(f"listing graphics adapters: {error}", remedy="Reinstall the graphics driver.") from error
    result, hardware = [], 0
    for one in described:
        high, low = one.luid
        result.append(
            Adapter(
                index=-1 if one.software else hardware,
                name=one.name,
                vendor=_VENDORS.get(one.vendor_id, f"{one.vendor_id:04x}"),
                luid=f"{high}:{low - (1 << 32) if low >= 1 << 31 else low}",  # genai reads a signed 32-bit number
                dedicated_memory=one.dedicated_memory,
                shared_memory=one.shared_memory,
                software=one.software,
                driver=one.driver,
                feature_level=one.feature_level,
                budget=one.budget,
                usage=one.usage,
            )
        )
        hardware += not one.software
    return result


def choose(found: Sequence[Adapter], wanted: int | str | None = None) -> Adapter:
    """The adapter to run on.

    Args:
        found: all adapters.
        wanted: an index, a LUID ("high:low") or a part of a name; ``None``: the usable one with the most memory.

    Raises:
        NoAdapter: there is none, none that is usable, or none that is meant.
        DriverTooOld: the one that is meant has no feature level 11_0.
    """
    hardware = [adapter for adapter in found if not adapter.software]
    if not hardware:
        where = "Windows lists no graphics adapter" if sys.platform == "win32" else "DirectML needs Windows"
        raise NoAdapter(where, remedy="Install a graphics driver, or use --provider cpu.")
    if wanted is None:
        usable = [adapter for adapter in hardware if adapter.usable]
        if not usable:
            raise _too_old(hardware[0])
        return max(usable, key=lambda adapter: (adapter.memory, -adapter.index))
    meant = [adapter for adapter in hardware if _is_meant(adapter, wanted)]
    if len({adapter.luid for adapter in meant}) != 1:
        there = "; ".join(f"{adapter.index}: {adapter.name} (LUID {adapter.luid})" for adapter in meant or hardware)
        what = "means several adapters" if meant else "is no adapter here"
        raise NoAdapter(f"{str(wanted)[:80]!r} {what}", remedy=f"Name one of these by index or LUID: {there}.")
    if not meant[0].usable:
        raise _too_old(meant[0])
    return meant[0]


def _is_meant(adapter: Adapter, wanted: int | str) -> bool:
    text = str(wanted).strip()
    if text.isdecimal():
        return adapter.index == int(text)
    return text == adapter.luid or (text != "" and text.casefold() in adapter.name.casefold())


def _too_old(adapter: Adapter) -> DriverTooOld:
    return DriverTooOld(
        f"{adapter.name}: Direct3D 12 makes no device of feature level 11_0 (driver {adapter.driver or 'unknown'})",
        remedy="Update the graphics driver from its maker's page; or use --provider cpu.",
    )


def explained(doing: str, text: str) -> GptOssError | None:
    """The error that a native message stands for, by its HRESULT; None for those that say nothing of the device.

    Args:
        doing: what was being done.
        text: what the library said.
    """
    if _REMOVED.search(text):
        remedy = "Load the model again in a new process; if it happens again, update the driver or stop overclocking."
        return DeviceLost(
            f"{doing}: the graphics adapter was reset, removed or its driver updated ({text})", remedy=remedy
        )
    if _MEMORY.search(text):
        remedy = "Close what uses the GPU, or load with a smaller context_length; gptoss doctor DIR shows what fits."
        return ResourceError(f"{doing}: the adapter's memory does not suffice ({text})", remedy=remedy)
    if _UNSUPPORTED.search(text):
        remedy = "Update the graphics driver; gptoss doctor shows adapters. Or use --provider cpu."
        return NoAdapter(f"{doing}: Direct3D 12 has no device to give ({text})", remedy=remedy)
    return None
