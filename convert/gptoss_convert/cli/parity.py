"""``gptoss parity``: compares an artifact's logits with its checkpoint's, or with a saved reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_convert.cli.common import Cost, progress_bar
from gptoss_runtime.cli.options import Json
from gptoss_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_convert.checkpoint import Checkpoint
    from gptoss_convert.parity.measure import Measurement
    from gptoss_convert.parity.reference_file import Reference

_REFERENCE = "What to compare with: the checkpoint's folder, or a file written by --save-reference."


def parity(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="The artifact folder.")] = None,
    *,
    reference: Annotated[Path, typer.Option("--reference", metavar="CHECKPOINT|FILE", help=_REFERENCE)],
    save_reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Save the checkpoint's logits, for machines without it; then DIR is optional."
        ),
    ] = None,
    keep: Annotated[
        int, typer.Option(min=1, help="With --save-reference: how many of the most likely tokens to save per position.")
    ] = 1024,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="Compare on this UTF-8 text.")] = None,
    sequences: Annotated[int | None, typer.Option(min=1, help="Number of sequences; 4 by default.")] = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens per sequence, up to the context length; 320 by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of generated sequences; 0 by default.")] = None,
    prefills: Annotated[
        int, typer.Option(min=1, help="Prompts per sequence, if the graph returns only the last logits.")
    ] = 8,
    steps: Annotated[
        int, typer.Option(min=1, help="How many of the first sequence's last tokens to feed one by one.")
    ] = 256,
    layers: Annotated[bool, typer.Option("--layers", help="Also compare hidden states after every layer.")] = False,
    max_kl: Annotated[
        float | None,
        typer.Option(min=0, help="Exit with code 9 if the mean KL divergence of either path exceeds this, in nats."),
    ] = None,
    provider: Annotated[str, typer.Option(help="Execution provider for the artifact.")] = "cpu",
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML report.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Record the result in the manifest.")] = False,
    json_output: Json = False,
) -> None:
    """Compare an artifact's logits with its checkpoint's in float32, in prefill and step by step."""
    from rich.console import Console

    from gptoss_convert.errors import DivergenceTooLarge, ParityError
    from gptoss_convert.parity import measure as parities
    from gptoss_runtime.cli.render import print_json

    cost, console = Cost(), Console(highlight=False, soft_wrap=True)
    if folder is None and (save_reference is None or report or record or max_kl is not None):
        raise InvalidRequest(
            "no artifact to compare", remedy="Give its folder; only --save-reference works without one."
        )
    expected = _open(reference, folder, _Text(text, sequences, length, seed))
    if folder is not None:  # before computing the reference for minutes
        parities.check_compatible(folder, expected.about, provider)
    saved = _prepare(expected, layers, save_reference, keep)
    if folder is None:
        _print_result(console, [f"{save_reference} ({cost})"], {**saved, **cost.figures()}, json_output)
        return
    try:
        with progress_bar("tokens", size=False) as progress:
            measured = parities.measure(
                folder, expected, provider=provider, prefills=prefills, steps=steps, layers=layers, progress=progress
            )
    except ParityError as error:
        if json_output:
            print_json(console, {**saved, **cost.figures(), "error": error.figures()})
        raise
    if record:
        parities.record_parity(folder, measured.summary())
    if report is not None:
        _write(report, measured, folder)
    failure = DivergenceTooLarge(measured.mean_kl, max_kl) if max_kl is not None and measured.mean_kl > max_kl else None
    figures = {**measured.figures(), **saved, **cost.figures(), "error": failure and failure.figures()}
    _print_result(console, _lines(measured, cost), figures, json_output)
    if failure:
        raise failure


@dataclass(frozen=True)
class _Text:
    """The options that define the sequences."""

    text: Path | None
    count: int | None
    length: int | None
    seed: int | None

    def sequences(self, checkpoint: Checkpoint, folder: Path | None) -> tuple[list[list[int]], str]:
        """Token ids, and a description of them."""
        from gptoss_convert.parity import sequences as generator

        config, count = checkpoint.config, self.count or generator.COUNT
        longest = config.max_position_embeddings
        length = self.length or min(generator.LENGTH, longest)
        if length > longest:
            raise InvalidRequest(
                f"--length is {length}, but the context of {checkpoint.path} is {longest}",
                remedy="Give a smaller --length.",
            )
        if self.text is None:
            seed = self.seed or 0
            ids = generator.generate_sequences(config.vocab_size, count=count, length=length, seed=seed)
            return ids, generator.describe_sequences(config.vocab_size, seed)
        if self.seed is not None:
            raise InvalidRequest("--seed with --text", remedy="Give only one of them; a text needs no seed.")
        own = checkpoint.path / "tokenizer.json"
        tokenizer = folder / "tokenizer.json" if folder is not None and not own.exists() else own
        return generator.tokenize_text(self.text, tokenizer, count=count, length=length), self.text.name


def _open(reference: Path, folder: Path | None, text: _Text) -> Reference:
    """Opens the reference; a checkpoint's is not computed yet."""
    from gptoss_convert.checkpoint import Checkpoint
    from gptoss_convert.parity.checkpoint_reference import CheckpointReference
    from gptoss_convert.parity.reference_file import SavedReference

    if not reference.is_file():
        checkpoint = Checkpoint.open(reference)
        return CheckpointReference(checkpoint, *text.sequences(checkpoint, folder))
    if text != _Text(None, None, None, None):
        raise InvalidRequest(
            f"{reference} has sequences of its own", remedy="Leave out --text, --sequences, --length and --seed."
        )
    return SavedReference.read(reference)


def _prepare(reference: Reference, layers: bool, file: Path | None, keep: int) -> dict[str, Any]:
    """Computes a checkpoint's reference, and saves it if ``file`` is given; the result is for JSON."""
    from gptoss_convert.parity.checkpoint_reference import CheckpointReference

    if isinstance(reference, CheckpointReference):
        with progress_bar("reference, layers", size=False) as progress:
            reference.compute(layers=layers, progress=progress)
        if file is None:
            return {}
        with progress_bar("reference, positions", size=False) as progress:
            reference.to_saved(keep, progress).write(file)
    elif file is not None:
        raise InvalidRequest("--save-reference of a saved reference", remedy="Copy the file, or give the checkpoint.")
    else:
        return {}
    return {"saved": str(file), "saved_bytes": file.stat().st_size, "saved_tokens": sum(reference.about.lengths)}


def _print_result(console: Console, lines: Iterable[str], figures: dict[str, Any], as_json: bool) -> None:
    from gptoss_runtime.cli.render import print_json

    if as_json:
        print_json(console, figures)
        return
    for line in lines:
        console.print(line, markup=False)


def _lines(measured: Measurement, cost: Cost) -> Iterator[str]:
    yield f"{measured.model} against {measured.about.name} on {measured.about.text} ({cost})"
    for name, series in (("prefill", measured.prefill), ("step by step", measured.steps)):
        one = series.comparison.figures()
        kl = " ".join(f"{what} {one[f'{what}_kl']:.3g}" for what in ("mean", "median", "p90", "p99", "max"))
        yield (
            f"  {name:13} {one['tokens']:6} positions  max |difference| {one['max_abs']:.3g}  KL {kl}  "
            f"same top token {one['top1']:.2%}"
        )
    if measured.layers:
        numbers = " ".join("-" if math.isnan(one) else f"{one:.2g}" for one in measured.layers.relative)
        yield f"  hidden states, relative error by number of layers: {numbers}"
    elif measured.no_layers:
        yield f"  hidden states: not available: {measured.no_layers}"
    if measured.same_source is False:
        yield "  The artifact was converted from a checkpoint with another config.json than the reference's."


def _write(report: Path, measurement: Measurement, folder: Path) -> None:
    from tokenizers import Tokenizer

    from gptoss_convert.errors import OutputError
    from gptoss_convert.parity.report import render

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    try:
        report.write_text(
            render(measurement, lambda ids: tokenizer.decode(ids, skip_special_tokens=False)), encoding="utf-8"
        )
    except OSError as error:
        raise OutputError(f"{report}: {error.strerror or error}") from error
