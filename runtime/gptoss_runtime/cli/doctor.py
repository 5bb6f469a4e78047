"""``gptoss doctor``: shows this machine, the installed packages and the device to use; runs the device check."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gptoss_runtime.cli.options import ContextLength, Device, Json, Provider
from gptoss_runtime.errors import InvalidRequest

NOTHING_RUNS = 6


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="Name of a model, or an artifact folder: also show which context lengths fit."
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Run MODEL on the device and compare its logits with MODEL's reference logits."),
    ] = False,
    verify: Annotated[
        bool, typer.Option(help="With --check: first compare every file with the manifest (sha256).")
    ] = True,
    provider: Provider = None,
    device: Device = None,
    context_length: ContextLength = None,
    json_output: Json = False,
) -> None:
    """Show adapters, memory, installed packages, problems with them, and which device gptoss would use.

    With --check: check whether this device computes the model correctly. Exit code 0: correct, 9: wrong, 10: unknown,
    because the artifact has no reference logits.
    """
    from rich.console import Console

    from gptoss_runtime.artifact.manifest import Manifest
    from gptoss_runtime.cli.machine_report import build_report
    from gptoss_runtime.cli.render import print_json
    from gptoss_runtime.models import Registry

    console = Console(highlight=False, soft_wrap=True)
    if check:
        from gptoss_runtime.cli.doctor_check import check_model

        if model is None:
            raise InvalidRequest("--check needs a model", remedy="Name one: gptoss doctor MODEL --check")
        options = {"device": device, "context_length": context_length}
        raise typer.Exit(check_model(console, model, provider, verify=verify, json_output=json_output, **options))
    if not (provider is None and device is None and context_length is None):
        raise InvalidRequest("--provider, --device and --context-length need --check", remedy="Add --check.")
    report = build_report(None if model is None else Manifest.read(Registry().resolve(model)))
    if json_output:
        print_json(console, report)
    else:
        _print_report(console, report)
    if not report["runs_on"]:
        raise typer.Exit(NOTHING_RUNS)


def _print_report(console: Any, report: dict[str, Any]) -> None:
    cpu = report["cpu"]
    own = f"gptoss-windows {report['gptoss']}, " if report["gptoss"] else ""
    console.print(f"{own}{report['system']}, Python {report['python']}", markup=False)
    available, total = _format_gb(cpu["memory_available"]), _format_gb(cpu["memory_total"])
    console.print(f"CPU: {cpu['physical_cores']} cores, {available} of {total} free")
    _print_adapters(console, report)
    packages = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    console.print(f"packages: {packages or 'no build of onnxruntime or onnxruntime-genai'}", markup=False)
    _print_fits(console, report)
    for problem in report["problems"]:
        console.print(f"{problem['for']}: {problem['problem']}", style="yellow", markup=False)
        for line in problem["remedy"].splitlines():
            console.print(f"  {line}", markup=False)
    if report["runs_on"]:
        first = report["runs_on"][0]
        console.print(f"gptoss would use {first} {report['why']}: --provider {first}", style="green", markup=False)
    else:
        console.print("gptoss cannot run here: no execution provider is usable", style="red")


def _print_adapters(console: Any, report: dict[str, Any]) -> None:
    from rich.text import Text

    from gptoss_runtime.cli.render import plain_table

    if not report["adapters"]:
        console.print("adapters: none")
        return
    table = plain_table("adapter", "name", "memory", "shared", "driver", "Direct3D", "LUID")
    for one in report["adapters"]:
        mark = "software" if one["software"] else str(one["index"])
        mark += " (chosen)" if one["index"] == report["chosen_adapter"] else ""
        memory = (_format_gb(one["dedicated_memory"]), _format_gb(one["shared_memory"]))
        row = (mark, one["name"], *memory, one["driver"] or "unknown", one["feature_level"] or "none", one["luid"])
        table.add_row(*map(Text, row))
    console.print(table)


def _print_fits(console: Any, report: dict[str, Any]) -> None:
    from rich.text import Text

    from gptoss_runtime.cli.render import plain_table

    artifact = report["artifact"]
    if artifact is None:
        return
    console.print(f"{artifact['name']}, converted for {artifact['target']}:", markup=False)
    for unmet in artifact["unmet"]:
        console.print(f"  it requires {unmet}", style="yellow", markup=False)
    table = plain_table("context length", *(f"{int(n):,}" for n in report["needs"]), "longest")
    table.add_row("needs", *(_format_gb(size) for size in report["needs"].values()), "")
    for fit in report["fits"]:
        answers = ("fits" if fits else "too long" for fits in fit["contexts"].values())
        table.add_row(Text(f"{fit['adapter']}, {_format_gb(fit['room'])}"), *answers, f"{fit['largest_context']:,}")
    console.print(table)


def _format_gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
