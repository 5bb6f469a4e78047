"""``gptoss convert``: converts a checkpoint to an artifact."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from gptoss_convert import targets
from gptoss_convert.cli.common import Cost, Overwrite, conversion_bars, folder_size
from gptoss_runtime.cli.options import Json
from gptoss_runtime.errors import InvalidRequest


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A folder with config.json, *.safetensors and the tokenizer.")],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The artifact's folder.")],
    target: Annotated[
        str,
        typer.Option(
            "--target", "-t", help=f"{', '.join(targets.names())}, or the path of an Olive config with our passes."
        ),
    ] = "cpu",
    preset: Annotated[
        str | None,
        typer.Option(help="Quantisation preset, such as lossless, balanced or smallest; by default the target's own."),
    ] = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            metavar="GROUP=TYPE",
            help="Override the preset for a tensor group, such as lm_head=int4; may be repeated.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; by default the checkpoint's.")] = None,
    logits: Annotated[
        str | None,
        typer.Option(help="Positions whose logits the graph returns: last, to generate, or all, to measure."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run of the same conversion.")] = False,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Upper bound for the conversion's memory, such as 4GB.")
    ] = None,
    max_file_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Split the weights into files of at most this size; 4GB fits FAT32."),
    ] = None,
    overwrite: Overwrite = False,
    json_output: Json = False,
) -> None:
    """Convert a gpt-oss checkpoint to an onnxruntime-genai folder with a target's Olive workflow."""
    from rich.console import Console

    from gptoss_convert.workflow import Options
    from gptoss_convert.workflow import convert as run
    from gptoss_runtime.cli.render import print_json

    cost, console = Cost(), Console(highlight=False, soft_wrap=True)
    sizes = {
        "max_memory": _parse_size("max-memory", max_memory),
        "max_file_size": _parse_size("max-file-size", max_file_size),
    }
    options = Options(preset, _schemes(scheme), name, logits, overwrite, resume, **sizes)
    with conversion_bars() as (progress, check_progress):
        manifest = run(
            checkpoint, out, target=target, options=options, progress=progress, check_progress=check_progress
        )
    if json_output:
        print_json(console, cost.report(out) | {"manifest": manifest.model_dump()})
        return
    console.print(f"{manifest.name}: {folder_size(out) / 1e6:,.0f} MB in {out} ({cost})")
    for label, group in manifest.groups.items():
        error = "exact" if group.snr_db is None else f"{group.snr_db:.1f} dB SNR"
        console.print(f"  {label:10} {group.scheme:14} {group.nbytes / 1e6:10,.1f} MB  {error}")
    console.print(f"Next: gptoss chat {out}")


def _parse_size(option: str, text: str | None) -> int | None:
    """Bytes of "4GB" or "900MiB"; a GB is 10^9 bytes, which is below FAT32's limit of 4 GiB.

    Not pydantic.ByteSize, which reads "4GB please" and "1.5.3", counts bits, and refuses "4Gi".
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    number, prefix, binary = match.groups() if match else ("0", "", "")
    size = int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
    if not size:
        raise InvalidRequest(f"--{option} is {text[:40]!r}", remedy="Give a size such as 4GB or 900MiB.")
    return size


def _schemes(assignments: list[str] | None) -> dict[str, str] | None:
    """``["lm_head=int4"]`` as a mapping; what is wrong in it is said by the workflow, which knows the groups."""
    return {group: kind for group, _, kind in (text.partition("=") for text in assignments)} if assignments else None
