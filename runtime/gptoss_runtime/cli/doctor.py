"""``gptoss doctor``: what this machine has, what is installed, and what would be used."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_runtime.cli.options import ContextLength, Device, Json, Provider
from gptoss_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from gptoss_runtime.artifact.manifest import Manifest
    from gptoss_runtime.machine.adapters import Adapter

NOTHING_RUNS = 6
_WINDOWS_11 = 22000  # the first build of it; the version says 10 to this day


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A model's name or an artifact folder: show which context lengths fit."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Run MODEL on the device and compare its logits with those that MODEL carries."),
    ] = False,
    verify: Annotated[bool, typer.Option(help="With --check: compare every file with the manifest first.")] = True,
    provider: Provider = None,
    device: Device = None,
    context_length: ContextLength = None,
    json_output: Json = False,
) -> None:
    """Show adapters, memory and installed packages, what would be used and why, and what is wrong.

    With --check: does this device compute the model right? Exit code 0: right, 9: wrong, 10: nothing to compare with.
    """
    from rich.console import Console

    from gptoss_runtime.artifact.manifest import Manifest
    from gptoss_runtime.cli.render import print_json
    from gptoss_runtime.models import Registry

    console = Console(highlight=False, soft_wrap=True)
    if check:
        from gptoss_runtime.cli.doctor_check import check_model

        if model is None:
            raise InvalidRequest("there is no model to check", remedy="Name it: gptoss doctor MODEL --check")
        options = {"device": device, "context_length": context_length}
        raise typer.Exit(check_model(console, model, provider, verify=verify, json_output=json_output, **options))
    if not (provider is None and device is None and context_length is None):
        raise InvalidRequest("--provider, --device and --context-length are --check's", remedy="Add --check.")
    report = examine(None if model is None else Manifest.read(Registry().resolve(model)))
    if json_output:
        print_json(console, report)
    else:
        _show(console, report)
    if not report["runs_on"]:
        raise typer.Exit(NOTHING_RUNS)


def examine(manifest: Manifest | None) -> dict[str, Any]:
    """Everything that is shown, as JSON has it.

    Args:
        manifest: an artifact's, or None.
    """
    from dataclasses import asdict

    from gptoss_runtime.errors import GptOssError
    from gptoss_runtime.machine import adapters, hardware, installed

    packages, problems = installed.find_builds(), []
    found: list[Adapter] = []
    chosen: Adapter | None = None

    def check(provider: str, examined: Any) -> bool:
        """Whether it raises nothing; otherwise that is a problem of the provider's."""
        try:
            examined()
        except GptOssError as error:
            problem = {"for": provider, "problem": error.message, "remedy": error.remedy or ""}
            if problem not in problems:
                problems.append(problem)
            return False
        return True

    def look() -> None:
        nonlocal found, chosen
        found = adapters.list_adapters()
        chosen = adapters.choose_adapter(found)

    device = check("directml", look)  # both are looked at, so that no second run finds a second problem
    builds = check("directml", lambda: installed.require_directml(packages))
    runs_on = ["directml"] if device and builds else []
    if check("cpu", lambda: installed.require_builds("cpu", packages)):
        runs_on.append("cpu")
    cpu = hardware.cpu()
    return {
        "system": _system(),
        "python": platform.python_version(),
        "gptoss": installed.own_version(),
        "cpu": asdict(cpu),
        "adapters": [asdict(adapter) for adapter in found],
        "chosen_adapter": None if chosen is None else chosen.index,
        "packages": packages,
        "runs_on": runs_on,
        "why": _why(runs_on, found, chosen),
        "problems": problems,
        "artifact": None if manifest is None else _artifact(manifest, packages),
        **_needs(manifest, found, cpu.memory_available),
    }


def _system() -> str:
    version = platform.version()
    build = version.rpartition(".")[2]
    if platform.system() == "Windows":
        release = "11" if build.isdecimal() and int(build) >= _WINDOWS_11 else platform.release()
        return f"Windows {release} ({version}), {platform.machine()}"
    return f"{platform.system()} {platform.release()}, {platform.machine()}"


def _why(runs_on: Sequence[str], found: Sequence[Adapter], chosen: Adapter | None) -> str:
    if "directml" in runs_on and chosen is not None:
        others = sum(adapter.usable for adapter in found) - 1
        reason = "the one with the most memory of its own" if others else "the only one that DirectML takes"
        return f"on adapter {chosen.index}, {chosen.name}: {reason}"
    return "because DirectML is not to be had, see above" if runs_on else ""


def _artifact(manifest: Manifest, packages: Mapping[str, str]) -> dict[str, Any]:
    from gptoss_runtime.machine import installed

    return {
        "name": manifest.name,
        "target": manifest.target,
        "unmet": installed.find_unmet(manifest.requires, packages),
    }


def _needs(manifest: Manifest | None, found: Sequence[Adapter], memory: int) -> dict[str, Any]:
    """What an artifact needs at each context length, and where that much is."""
    from gptoss_runtime.machine import preflight

    if manifest is None:
        return {"needs": {}, "fits": []}
    budget = manifest.memory
    places = [
        (adapter.name, preflight.available_memory(adapter), preflight.largest_context(budget, adapter))
        for adapter in found
        if adapter.usable
    ]
    places.append(("CPU", memory, preflight.round_context(budget.largest_context(memory))))
    return {
        "needs": {str(n): budget.at(n) for n in preflight.CONTEXTS},
        "fits": [
            {
                "adapter": name,
                "room": room,
                "largest_context": largest,
                "contexts": {str(n): budget.at(n) <= room for n in preflight.CONTEXTS},
            }
            for name, room, largest in places
        ],
    }


def _show(console: Any, report: dict[str, Any]) -> None:
    cpu = report["cpu"]
    own = f"gptoss-windows {report['gptoss']}, " if report["gptoss"] else ""
    console.print(f"{own}{report['system']}, Python {report['python']}", markup=False)
    console.print(
        f"CPU: {cpu['physical_cores']} cores, {_gb(cpu['memory_available'])} of {_gb(cpu['memory_total'])} free"
    )
    _show_adapters(console, report)
    packages = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    console.print(f"packages: {packages or 'no build of onnxruntime or onnxruntime-genai'}", markup=False)
    _show_fits(console, report)
    for problem in report["problems"]:
        console.print(f"{problem['for']}: {problem['problem']}", style="yellow", markup=False)
        for line in problem["remedy"].splitlines():
            console.print(f"  {line}", markup=False)
    if report["runs_on"]:
        first = report["runs_on"][0]
        console.print(f"gptoss would use {first} {report['why']}: --provider {first}", style="green", markup=False)
    else:
        console.print("gptoss has nothing to run on", style="red")


def _show_adapters(console: Any, report: dict[str, Any]) -> None:
    from rich.text import Text

    from gptoss_runtime.cli.render import plain_table

    if not report["adapters"]:
        console.print("adapters: none")
        return
    table = plain_table("adapter", "name", "memory", "shared", "driver", "Direct3D", "LUID")
    for one in report["adapters"]:
        mark = "software" if one["software"] else str(one["index"])
        mark += " (chosen)" if one["index"] == report["chosen_adapter"] else ""
        memory = (_gb(one["dedicated_memory"]), _gb(one["shared_memory"]))
        row = (mark, one["name"], *memory, one["driver"] or "unknown", one["feature_level"] or "none", one["luid"])
        table.add_row(*map(Text, row))
    console.print(table)


def _show_fits(console: Any, report: dict[str, Any]) -> None:
    from rich.text import Text

    from gptoss_runtime.cli.render import plain_table

    artifact = report["artifact"]
    if artifact is None:
        return
    console.print(f"{artifact['name']}, made for {artifact['target']}:", markup=False)
    for unmet in artifact["unmet"]:
        console.print(f"  it asks for {unmet}", style="yellow", markup=False)
    table = plain_table("positions", *(f"{int(n):,}" for n in report["needs"]), "at most")
    table.add_row("needs", *(_gb(size) for size in report["needs"].values()), "")
    for fit in report["fits"]:
        answers = ("fits" if fits else "too much" for fits in fit["contexts"].values())
        table.add_row(Text(f"{fit['adapter']}, {_gb(fit['room'])}"), *answers, f"{fit['largest_context']:,}")
    console.print(table)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
