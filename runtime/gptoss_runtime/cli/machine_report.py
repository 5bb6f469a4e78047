"""Collects what ``gptoss doctor`` shows: adapters, memory, installed packages, and which providers run here."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gptoss_runtime.artifact.manifest import Manifest
from gptoss_runtime.errors import GptOssError
from gptoss_runtime.machine import adapters, hardware, installed, preflight
from gptoss_runtime.machine.adapters import Adapter

_WINDOWS_11 = 22000  # its first build; Windows 11 still reports the version 10


def build_report(manifest: Manifest | None) -> dict[str, Any]:
    """Returns the report as a JSON object.

    Args:
        manifest: the manifest of an artifact to compare with this machine, or None.
    """
    packages, problems = installed.find_builds(), []
    found: list[Adapter] = []
    chosen: Adapter | None = None

    def check(provider: str, step: Callable[[], None]) -> bool:
        """Runs a step; an error becomes a problem of the provider."""
        try:
            step()
        except GptOssError as error:
            problem = {"for": provider, "problem": error.message, "remedy": error.remedy or ""}
            if problem not in problems:
                problems.append(problem)
            return False
        return True

    def find_adapter() -> None:
        nonlocal found, chosen
        found = adapters.list_adapters()
        chosen = adapters.choose_adapter(found)

    has_adapter = check("directml", find_adapter)  # check both, so that one run shows all problems
    has_builds = check("directml", lambda: installed.require_directml(packages))
    runs_on = ["directml"] if has_adapter and has_builds else []
    if check("cpu", lambda: installed.require_builds("cpu", packages)):
        runs_on.append("cpu")
    cpu = hardware.cpu()
    return {
        "system": _describe_system(),
        "python": platform.python_version(),
        "gptoss": installed.own_version(),
        "cpu": asdict(cpu),
        "adapters": [asdict(adapter) for adapter in found],
        "chosen_adapter": None if chosen is None else chosen.index,
        "packages": packages,
        "runs_on": runs_on,
        "why": _explain_choice(runs_on, found, chosen),
        "problems": problems,
        "artifact": None if manifest is None else _describe_artifact(manifest, packages),
        **_compare_memory(manifest, found, cpu.memory_available),
    }


def _describe_system() -> str:
    version = platform.version()
    build = version.rpartition(".")[2]
    if platform.system() == "Windows":
        release = "11" if build.isdecimal() and int(build) >= _WINDOWS_11 else platform.release()
        return f"Windows {release} ({version}), {platform.machine()}"
    return f"{platform.system()} {platform.release()}, {platform.machine()}"


def _explain_choice(runs_on: Sequence[str], found: Sequence[Adapter], chosen: Adapter | None) -> str:
    if "directml" in runs_on and chosen is not None:
        others = sum(adapter.usable for adapter in found) - 1
        reason = "it has the most dedicated memory" if others else "it is the only adapter that DirectML can use"
        return f"on adapter {chosen.index}, {chosen.name}: {reason}"
    return "because DirectML is unavailable, see above" if runs_on else ""


def _describe_artifact(manifest: Manifest, packages: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "target": manifest.target,
        "unmet": installed.find_unmet(manifest.requires, packages),
    }


def _compare_memory(manifest: Manifest | None, found: Sequence[Adapter], memory: int) -> dict[str, Any]:
    """Compares the memory an artifact needs at each context length with the memory of each device."""
    if manifest is None:
        return {"needs": {}, "fits": []}
    budget = manifest.memory
    devices = [
        (adapter.name, preflight.available_memory(adapter), preflight.largest_context(budget, adapter))
        for adapter in found
        if adapter.usable
    ]
    devices.append(("CPU", memory, preflight.round_context(budget.largest_context(memory))))
    return {
        "needs": {str(n): budget.at(n) for n in preflight.CONTEXTS},
        "fits": [
            {
                "adapter": name,
                "room": available,
                "largest_context": largest,
                "contexts": {str(n): budget.at(n) <= available for n in preflight.CONTEXTS},
            }
            for name, available, largest in devices
        ],
    }
