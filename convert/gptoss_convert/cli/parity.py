"""``gptoss parity``: an artifact's logits against its checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_convert.cli.common import Cost, progress_bar
from gptoss_runtime.cli.options import Folder, Json

if TYPE_CHECKING:
    from gptoss_convert.parity.measure import Measurement


def parity(
    folder: Folder,
    reference: Annotated[Path, typer.Option("--reference", metavar="CHECKPOINT", help="What to compare with.")],
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the details.")] = None,
    sequences: Annotated[int, typer.Option(min=1, help="How many sequences.")] = 4,
    length: Annotated[int, typer.Option(min=2, help="Tokens in each.")] = 320,
    seed: Annotated[int, typer.Option(help="Of the sequences.")] = 0,
    provider: Annotated[str, typer.Option(help="Execution provider that computes the artifact's.")] = "cpu",
    record: Annotated[bool, typer.Option("--record", help="Put the result into the manifest.")] = False,
    json_output: Json = False,
) -> None:
    """Compare an artifact's logits with transformers' on its checkpoint, prefill and step by step."""
    from rich.console import Console

    from gptoss_convert.parity import measure as parities
    from gptoss_runtime.cli.render import print_json

    cost, console = Cost(), Console(highlight=False, soft_wrap=True)
    with progress_bar("sequences", size=False) as progress:
        measurement = parities.measure(
            folder, reference, provider=provider, count=sequences, length=length, seed=seed, progress=progress
        )
    summary = measurement.summary()
    if record:
        parities.record(folder, summary)
    if report is not None:
        _write(report, measurement, folder)
    if json_output:
        print_json(console, summary.model_dump() | {"seconds": cost.seconds, "peak_memory": cost.peak_memory})
        return
    console.print(f"{measurement.model} against {measurement.reference} ({cost})")
    for name, part in (("prefill", measurement.prefill), ("step by step", measurement.steps)):
        console.print(
            f"  {name:13} {len(part.kl):6} tokens  max |difference| {part.max_abs.max():.3g}  "
            f"mean KL {part.kl.mean():.3g}  same top token {part.same_top.mean():.2%}"
        )


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
