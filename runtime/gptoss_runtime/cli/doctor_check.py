"""``gptoss doctor MODEL --check``: runs the check on a device, and says what came of it, for people and for an issue.

Knows artifacts, the machine and the terminal; how logits are judged is ``device_check``'s.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gptoss_runtime.cli.doctor import examine
from gptoss_runtime.cli.options import located
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
    """Checks, and prints a verdict.

    Args:
        console: where to.
        model: a name or a folder.
        provider: None: the artifact's own.
        verify: compare the files with the manifest first, so that damage is not blamed on the device.
        json_output: one JSON object instead of text, also where an error is raised.
        options: of ``load_engine``.

    Returns:
        The exit code.

    Raises:
        GptOssError: the model could not be loaded or run, or its files are damaged.
    """
    from gptoss_runtime.artifact.folder import Artifact
    from gptoss_runtime.cli.render import print_json

    folder, provider = located(model, provider)
    artifact = Artifact.open(folder)
    machine = examine(artifact.manifest)
    about = {
        "model": artifact.name,
        "target": artifact.target,
        "preset": artifact.manifest.preset if artifact.manifest else None,
        "provider": provider,
    }
    if not json_output:
        console.print(f"Checking {artifact.name} ({artifact.target}) on {provider}.", markup=False)
        for unmet in (machine["artifact"] or {"unmet": []})["unmet"]:
            console.print(f"It asks for {unmet}.", style="yellow", markup=False)
    try:
        with _bar(quiet=json_output) as (say, progress):
            about["files"] = _verify(artifact, say) if verify else "not checked"
            say("loading the model")
            result, report = _measure(artifact, provider, progress, **options)
    except GptOssError as error:
        if json_output:
            failure = {"type": type(error).__name__, "message": error.message, "remedy": error.remedy}
            print_json(console, machine | {"check": about | {"outcome": None, "error": failure}})
        raise
    if json_output:
        print_json(console, machine | {"check": about | result})
    else:
        _show(console, machine, about | result, report, artifact)
    return {"right": RIGHT, "wrong": WRONG}.get(report.outcome, UNKNOWN)


def _measure(
    artifact: Artifact, provider: str, progress: Progress, **options: Any
) -> tuple[dict[str, Any], DeviceReport]:
    from gptoss_runtime.device_check import check_device
    from gptoss_runtime.engine.loading import load_engine

    reference, found = _reference(artifact), artifact.manifest.range if artifact.manifest else None
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
        "verdict": verdict(info, report),
    }
    return result, report


def _reference(artifact: Artifact) -> ReferenceLogits | None:
    """The artifact's reference; a file that isn't the manifest's would judge the device by something else.

    Raises:
        ArtifactError: it is missing though listed, another file than listed, or malformed.
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


def _verify(artifact: Artifact, say: Callable[[str], None]) -> str:
    """Compares all files with the manifest.

    Raises:
        ArtifactError: one is missing or different.
    """
    from gptoss_runtime.artifact.folder import verify_checksums

    if artifact.manifest is None:
        return "no manifest to compare them with"
    say("comparing the files with the manifest")
    verify_checksums(artifact.path, artifact.manifest)
    return "as the manifest lists them"


def verdict(info: ModelInfo, report: DeviceReport) -> str:
    """One sentence."""
    device = info.device or f"this machine's {'CPU' if info.provider.lower() == 'cpu' else info.provider}"
    subject = device[0].upper() + device[1:]
    if report.outcome == "wrong":
        return f"{subject} computes {info.name} WRONG: {report.problems[0]}"
    if report.outcome == "unknown":
        return (
            f"Cannot tell whether {device} computes {info.name} right: the artifact has no reference logits. "
            "What it gives is finite, and the same in two runs"
        )
    count = len(report.positions)
    top = "same top token at all" if report.same_top == count else f"same top token at {report.same_top}"
    seconds = report.prefill_seconds + report.decode_seconds
    return (
        f"{subject} computes {info.name} right: {count} positions, median KL "
        f"{statistics.median(report.divergences):.1g} nats, {top}, "
        f"{report.prompt_tokens + report.steps:,} tokens in {seconds:.1f} s"
    )


def _show(
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
        console.print("gptoss convert stores reference logits with what it makes: convert the checkpoint with it.")
    far = sum(one.far for one in report.positions)
    if report.outcome == "right" and far:
        console.print(f"{far} of them far off, which rounding does where a router's choice of experts is near a tie.")
    if report.outcome == "wrong":
        if check["provider"].lower() != "cpu":
            console.print("Update the graphics driver, take back overclocking, and check again.")
        console.print("Do not trust this model's answers here. If it stays wrong, report it with all of this:\n")
        for line in report_lines(machine, check, report, artifact):
            console.print(line, markup=False)


def report_lines(
    machine: dict[str, Any], check: dict[str, Any], report: DeviceReport, artifact: Artifact
) -> Iterator[str]:
    """What to paste into an issue: no path, user name or LUID is in it."""
    from gptoss_runtime.cli.render import range_lines

    manifest = artifact.manifest
    yield "```text"
    yield f"gptoss doctor --check: {report.outcome}"
    yield from (f"- {problem}" for problem in report.problems)
    preset = f", preset {check['preset']}" if check["preset"] else ""
    yield f"model: {check['model']}, target {check['target']}{preset}; files: {check['files']}"
    if manifest is not None:
        yield f"made from: {manifest.source.name} {manifest.source.revision or ''}".rstrip()
        yield "made by: " + ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
        yield from range_lines(manifest.range)
    yield f"ran on: {check['provider']}, {check['device'] or 'default device'}, {check['context_length']:,} positions"
    for one in machine["adapters"]:
        yield (
            f"adapter {one['index']}: {one['name']}, driver {one['driver'] or 'unknown'}, feature level "
            f"{one['feature_level'] or 'none'}, {one['dedicated_memory'] / 1e9:.1f} GB"
        )
    yield f"system: {machine['system']}, Python {machine['python']}, gptoss-windows {machine['gptoss'] or 'unknown'}"
    yield "packages: " + (", ".join(f"{name} {version}" for name, version in machine["packages"].items()) or "none")
    for unmet in (machine["artifact"] or {"unmet": []})["unmet"]:
        yield f"asks for {unmet}"
    yield "position  phase    logits off  KL (nats)  top token  expected  its lead"
    for at in report.positions:
        shift = "not finite" if not at.finite else "unknown" if at.shift is None else f"{at.shift:.3f}"
        kl = "" if at.divergence is None else f"{at.divergence:.2e}"
        found, expected = (" " if token is None else token for token in (at.found, at.expected))
        lead = "" if at.margin is None else f"{at.margin:.2f}"
        row = f"{at.position:8}  {at.phase:7}  {shift:>10}  {kl:>9}  {found:>9}  {expected:>8}  {lead:>8}"
        yield row + "  far" * at.far
    yield "```"


@contextmanager
def _bar(*, quiet: bool) -> Iterator[tuple[Callable[[str], None], Progress]]:
    """A bar on stderr, where that is a terminal: as functions of what is being done, and of tokens."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        task = bars.add_task("", total=None, count="")

        def say(doing: str) -> None:
            bars.update(task, description=doing)

        def show(done: int, total: int) -> None:
            bars.update(task, description="checking", completed=done, total=total, count=f"{done}/{total} tokens")

        yield say, show
