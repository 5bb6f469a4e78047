"""``gptoss doctor MODEL --check``: runs the device check and prints the result, as text, JSON or an issue report.

Knows artifacts, the machine and the terminal; ``device_check`` compares the logits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gptoss_runtime.cli.machine_report import build_report
from gptoss_runtime.cli.options import locate_model
from gptoss_runtime.errors import ArtifactError, GptOssError

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_runtime.artifact.folder import Artifact
    from gptoss_runtime.artifact.reference_logits import ReferenceLogits
    from gptoss_runtime.device_check import DeviceReport, Progress
    from gptoss_runtime.engine.results import ModelInfo

RIGHT, WRONG, UNKNOWN = 0, 9, 10


def check_model(
    console: Console, model: str, provider: str | None, *, verify: bool, json_output: bool, **options: Any
) -> int:
    """Runs the device check and prints the result.

    Args:
        console: the console to print to.
        model: a model's name or an artifact folder.
        provider: the execution provider; None: the one the artifact was converted for.
        verify: compare the files with the manifest first, so that damaged files are not reported as a device error.
        json_output: print one JSON object instead of text, also if an error is raised.
        options: options of ``load_engine``.

    Returns:
        The exit code.

    Raises:
        GptOssError: the model could not be loaded or run, or its files are damaged.
    """
    from gptoss_runtime.artifact.folder import Artifact
    from gptoss_runtime.cli.render import describe_error, print_json

    folder, provider = locate_model(model, provider)
    artifact = Artifact.open(folder)
    machine = build_report(artifact.manifest)
    about = {
        "model": artifact.name,
        "target": artifact.target,
        "preset": artifact.manifest.preset if artifact.manifest else None,
        "provider": provider,
    }
    if not json_output:
        console.print(f"Checking {artifact.name} ({artifact.target}) on {provider}.", markup=False)
        for unmet in (machine["artifact"] or {"unmet": []})["unmet"]:
            console.print(f"It requires {unmet}.", style="yellow", markup=False)
    try:
        with _progress_bar(quiet=json_output) as (describe, progress):
            about["files"] = _verify(artifact, describe) if verify else "not checked"
            describe("loading the model")
            result, report = _measure(artifact, provider, progress, **options)
    except GptOssError as error:
        if json_output:
            print_json(console, machine | {"check": about | {"outcome": None, "error": describe_error(error)}})
        raise
    if json_output:
        print_json(console, machine | {"check": about | result})
    else:
        _print_result(console, machine, about | result, report, artifact)
    return {"right": RIGHT, "wrong": WRONG}.get(report.outcome, UNKNOWN)


def _measure(
    artifact: Artifact, provider: str, progress: Progress, **options: Any
) -> tuple[dict[str, Any], DeviceReport]:
    from gptoss_runtime.device_check import check_device
    from gptoss_runtime.engine.loading import load_engine

    reference, found = _read_reference(artifact), artifact.manifest.range if artifact.manifest else None
    started = time.perf_counter()
    with load_engine(artifact.path, provider=provider, **options) as engine:
        loaded = time.perf_counter() - started
        report = check_device(engine, reference, dtype=found.dtype if found else "float16", progress=progress)
        info = engine.info
    result = {
        "device": info.device,
        "context_length": info.context_length,
        "load_seconds": round(loaded, 3),
        **report.to_dict(),
        "verdict": summarize(info, report),
    }
    return result, report


def _read_reference(artifact: Artifact) -> ReferenceLogits | None:
    """Reads the artifact's reference logits, and checks that they are the ones the manifest lists.

    Raises:
        ArtifactError: the file is listed but missing, differs from the manifest, or is malformed.
    """
    from gptoss_runtime.artifact.folder import locate_file
    from gptoss_runtime.artifact.manifest import FileEntry
    from gptoss_runtime.artifact.reference_logits import REFERENCE_LOGITS, ReferenceLogits

    listed = artifact.manifest.files.get(REFERENCE_LOGITS) if artifact.manifest else None
    if listed is None and not (artifact.path / REFERENCE_LOGITS).exists():
        return None
    file = locate_file(artifact.path, REFERENCE_LOGITS)
    if listed is not None and FileEntry.from_file(file) != listed:
        raise ArtifactError(
            f"{file} differs from the manifest (sha256)", remedy="Convert the checkpoint again, or copy it again."
        )
    return ReferenceLogits.read(artifact.path)


def _verify(artifact: Artifact, describe: Callable[[str], None]) -> str:
    """Compares all files with the manifest and returns the result in words.

    Raises:
        ArtifactError: one is missing or different.
    """
    from gptoss_runtime.artifact.folder import verify_checksums

    if artifact.manifest is None:
        return "not checked, there is no manifest"
    describe("comparing the files with the manifest")
    verify_checksums(artifact.path, artifact.manifest)
    return "as listed in the manifest"


def summarize(info: ModelInfo, report: DeviceReport) -> str:
    """Returns the result in one sentence."""
    device = info.device or f"this machine's {'CPU' if info.provider.lower() == 'cpu' else info.provider}"
    subject = device[0].upper() + device[1:]
    if report.outcome == "wrong":
        return f"{subject} computes {info.name} WRONG: {report.problems[0]}"
    if report.outcome == "unknown":
        return (
            f"Unknown whether {device} computes {info.name} correctly: the artifact has no reference logits. "
            "The logits are finite and the same in two runs"
        )
    count = len(report.positions)
    top = "same top token at all" if report.same_top == count else f"same top token at {report.same_top}"
    seconds = report.prefill_seconds + report.decode_seconds
    return (
        f"{subject} computes {info.name} correctly: {count} positions, median KL "
        f"{statistics.median(report.divergences):.1g} nats, {top}, "
        f"{report.prompt_tokens + report.steps:,} tokens in {seconds:.1f} s"
    )


def _print_result(
    console: Console, machine: dict[str, Any], check: dict[str, Any], report: DeviceReport, artifact: Artifact
) -> None:
    rate, steps = report.prompt_tokens / report.prefill_seconds, report.steps / max(report.decode_seconds, 1e-9)
    console.print(
        f"Loaded in {check['load_seconds']:.1f} s. Prompts: {report.prompt_tokens:,} tokens in "
        f"{report.prefill_seconds:.1f} s ({rate:,.0f} tokens/s, the first run of each length included). "
        f"Decoding: {report.steps} tokens in {report.decode_seconds:.1f} s ({steps:,.1f} tokens/s)."
    )
    style = {"right": "green", "wrong": "red"}.get(report.outcome, "yellow")
    console.print(check["verdict"] + ".", style=style, markup=False)
    if report.outcome == "unknown":
        console.print("gptoss convert stores reference logits in an artifact: convert the checkpoint again with it.")
    far = sum(one.far for one in report.positions)
    if report.outcome == "right" and far:
        console.print(f"{far} of them differ by more; rounding causes this where the router's scores are nearly equal.")
    if report.outcome == "wrong":
        if check["provider"].lower() != "cpu":
            console.print("Update the graphics driver, undo overclocking, and check again.")
        console.print("Do not trust this model's answers here. If it stays wrong, report it with the text below:\n")
        for line in format_issue(machine, check, report, artifact):
            console.print(line, markup=False)


def format_issue(
    machine: dict[str, Any], check: dict[str, Any], report: DeviceReport, artifact: Artifact
) -> Iterator[str]:
    """Yields the lines of a report to paste into an issue; it contains no path, user name or LUID."""
    from gptoss_runtime.cli.render import format_range

    manifest = artifact.manifest
    yield "```text"
    yield f"gptoss doctor --check: {report.outcome}"
    yield from (f"- {problem}" for problem in report.problems)
    preset = f", preset {check['preset']}" if check["preset"] else ""
    yield f"model: {check['model']}, target {check['target']}{preset}; files: {check['files']}"
    if manifest is not None:
        yield f"converted from: {manifest.source.name} {manifest.source.revision or ''}".rstrip()
        yield "converted with: " + ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
        yield from format_range(manifest.range)
    yield f"ran on: {check['provider']}, {check['device'] or 'default device'}, {check['context_length']:,} positions"
    for one in machine["adapters"]:
        yield (
            f"adapter {one['index']}: {one['name']}, driver {one['driver'] or 'unknown'}, feature level "
            f"{one['feature_level'] or 'none'}, {one['dedicated_memory'] / 1e9:.1f} GB"
        )
    yield f"system: {machine['system']}, Python {machine['python']}, gptoss-windows {machine['gptoss'] or 'unknown'}"
    yield "packages: " + (", ".join(f"{name} {version}" for name, version in machine["packages"].items()) or "none")
    for unmet in (machine["artifact"] or {"unmet": []})["unmet"]:
        yield f"requires {unmet}"
    yield "position  phase    logits off  KL (nats)  top token  expected    margin"
    for at in report.positions:
        shift = "not finite" if not at.finite else "unknown" if at.shift is None else f"{at.shift:.3f}"
        kl = "" if at.divergence is None else f"{at.divergence:.2e}"
        found, expected = (" " if token is None else token for token in (at.found, at.expected))
        lead = "" if at.margin is None else f"{at.margin:.2f}"
        row = f"{at.position:8}  {at.phase:7}  {shift:>10}  {kl:>9}  {found:>9}  {expected:>8}  {lead:>8}"
        yield row + "  far" * at.far
    yield "```"


@contextmanager
def _progress_bar(*, quiet: bool) -> Iterator[tuple[Callable[[str], None], Progress]]:
    """Shows a progress bar if stderr is a terminal; yields functions to set its description and its token count."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        task = bars.add_task("", total=None, count="")

        def describe(step: str) -> None:
            bars.update(task, description=step)

        def show(done: int, total: int) -> None:
            bars.update(task, description="checking", completed=done, total=total, count=f"{done}/{total} tokens")

        yield describe, show
