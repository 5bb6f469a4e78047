"""``gptoss doctor``: what this machine has, what is installed, and what would be used."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from gptoss_runtime.cli.options import Json


def doctor(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="An artifact: say what of it fits.")] = None,
    json_output: Json = False,
) -> None:
    """Show adapters, memory and installed packages, what would be used and why, and what is wrong."""
    from rich.console import Console

    from gptoss_runtime.cli.render import print_json

    report = examine(folder)
    console = Console(highlight=False)
    if json_output:
        print_json(console, report)
    else:
        _show(console, report)
    if not report["runs_on"]:
        raise typer.Exit(6)


def examine(folder: Path | None) -> dict[str, Any]:
    """Everything that is shown, as JSON has it.

    Raises:
        ArtifactError: the folder is no artifact.
    """
    from dataclasses import asdict

    from gptoss_runtime import adapters, hardware, installed, preflight
    from gptoss_runtime.errors import GptOssError
    from gptoss_runtime.manifest import Manifest

    budget = None if folder is None else Manifest.read(folder).memory
    packages, problems, chosen = installed.installed(), [], None
    found: list[adapters.Adapter] = []
    try:
        found = adapters.adapters()
        chosen = adapters.choose(found)
        installed.require_directml(packages)
    except GptOssError as error:
        problems.append({"for": "directml", "problem": error.message, "remedy": error.remedy or ""})
    runs_on = [] if problems else ["directml"]
    genai = [name for name in installed.GENAI if name in packages]
    if genai and not installed.conflicts(packages):
        runs_on.append("cpu")
    elif not genai:
        remedy = 'pip install "gptoss-windows[cpu]"'
        problems.append({"for": "cpu", "problem": "no build of onnxruntime-genai is installed", "remedy": remedy})
    fits = []
    if budget is not None:
        fits = [
            {
                "adapter": adapter.name,
                "largest_context": preflight.largest_context(budget, adapter),
                "contexts": {str(n): budget.at(n) <= preflight.room(adapter) for n in preflight.CONTEXTS},
            }
            for adapter in found
            if adapter.usable
        ]
    return {
        "system": f"{platform.system()} {platform.release()} {platform.version()}",
        "python": platform.python_version(),
        "cpu": asdict(hardware.cpu()),
        "adapters": [asdict(adapter) for adapter in found],
        "chosen_adapter": None if chosen is None else chosen.index,
        "packages": packages,
        "runs_on": runs_on,
        "problems": problems,
        "needs": {str(n): budget.at(n) for n in preflight.CONTEXTS} if budget is not None else {},
        "fits": fits,
    }


def _show(console: Any, report: dict[str, Any]) -> None:
    from rich.table import Table

    cpu = report["cpu"]
    console.print(f"{report['system']}, Python {report['python']}")
    console.print(f"CPU: {cpu['physical_cores']} cores, {cpu['memory_available'] / 1e9:.1f} GB of memory available")
    if report["adapters"]:
        table = Table()
        for heading in ("", "adapter", "memory", "driver", "Direct3D", "LUID"):
            table.add_column(heading)
        for one in report["adapters"]:
            mark = "software" if one["software"] else str(one["index"])
            memory = f"{one['dedicated_memory'] / 2**30:.1f} GiB"
            table.add_row(mark, one["name"], memory, one["driver"] or "?", one["feature_level"] or "none", one["luid"])
        console.print(table)
    packages = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    console.print(f"packages: {packages or 'none of onnxruntime'}")
    for context, needed in report["needs"].items():
        console.print(f"{int(context):,} positions need {needed / 1e9:.1f} GB")
    for fit in report["fits"]:
        console.print(f"{fit['adapter']}: {fit['largest_context']:,} positions fit at most")
    for problem in report["problems"]:
        console.print(f"{problem['for']}: {problem['problem']}", style="yellow", markup=False)
        console.print(f"  {problem['remedy']}", markup=False)
    if report["runs_on"]:
        first, adapter = report["runs_on"][0], report["chosen_adapter"]
        where = f" on adapter {adapter}, the one with the most memory" if first == "directml" else ""
        console.print(f"gptoss would use {first}{where}: --provider {first}")
    else:
        console.print("gptoss has nothing to run on", style="red")
