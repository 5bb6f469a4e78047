"""``gptoss models``: lists, describes, downloads and removes models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_runtime.cli.options import Json

if TYPE_CHECKING:
    from gptoss_runtime.models import Progress, Registry, Variant

models = typer.Typer(no_args_is_help=True, add_completion=False, help="List, pull, describe and remove models.")

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Name or alias of a model, or NAME:TARGET.")]
Target = Annotated[
    str | None, typer.Option("--target", "-t", help="Variant to use; by default the one that runs best here.")
]


@models.command("list")
def list_models(
    here: Annotated[bool, typer.Option("--here", help="Only models on this machine.")] = False,
    json_output: Json = False,
) -> None:
    """Show every model and variant, its size, and where it is."""
    from gptoss_runtime.cli.render import plain_table

    found = _make_registry().list(here=here)
    console = _make_console()
    if json_output:
        _print_json([_to_json(variant) for variant in found])
        return
    table = plain_table("model", "target", "size", "memory", "where")
    for one in found:
        table.add_row(
            *_cells(one.model, one.target, _format_size(one.size), _format_size(_memory(one)), _format_location(one))
        )
    console.print(table)


@models.command()
def pull(name: Name, target: Target = None, json_output: Json = False) -> None:
    """Download a variant and check it against its manifest; resumes an interrupted download."""
    with _progress_bar(quiet=json_output) as progress:
        variant = _make_registry().pull(name, target, progress)
    if json_output:
        _print_json(_to_json(variant))
    else:
        _make_console().print(f"{variant.id} is in {variant.path}\nNext: gptoss chat {variant.path}", markup=False)


@models.command()
def info(name: Name, json_output: Json = False) -> None:
    """Show a model's variants, which one this machine would use, and why."""
    registry = _make_registry()
    variants, choice = registry.info(name), _describe_choice(registry, name)
    if json_output:
        _print_json({"variants": [_to_json(variant) for variant in variants], "choice": choice})
        return
    console = _make_console()
    for one in variants:
        console.print(f"{one.id}  {_format_size(one.size)}, {_format_location(one)}", markup=False)
        for line in _iter_details(one):
            console.print(f"  {line}", markup=False)
    console.print(choice["reason"], markup=False, style="green" if choice["target"] else "yellow")


@models.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="NAME:TARGET, or NAME if only one variant was pulled.")],
    json_output: Json = False,
) -> None:
    """Delete a pulled variant or the files of an interrupted pull; never deletes other folders."""
    folder = _make_registry().remove(name)
    if json_output:
        _print_json({"removed": str(folder)})
    else:
        _make_console().print(f"removed {folder}", markup=False)


def _make_registry() -> Registry:
    from gptoss_runtime.models import Registry

    return Registry()


def _describe_choice(registry: Registry, name: str) -> dict[str, Any]:
    """Describes the choice among the variants on this machine, or among all variants if none is here."""
    from gptoss_runtime.errors import GptOssError
    from gptoss_runtime.models.choosing import choose

    variants = registry.info(name)
    here = [one for one in variants if one.path is not None and one.problem is None]
    try:
        chosen = choose(variants[0].model, here or variants)
    except GptOssError as error:
        return {"target": None, "provider": None, "device": None, "context": None, "reason": error.message}
    placement = chosen.placement
    target = chosen.variant.target
    return {
        "target": target,
        "provider": placement.provider,
        "device": placement.device,
        "context": placement.context,
        "reason": chosen.reason,
    }


def _to_json(variant: Variant) -> dict[str, Any]:
    return {
        "id": variant.id,
        "model": variant.model,
        "target": variant.target,
        "path": None if variant.path is None else str(variant.path),
        "where": variant.where,
        "size": variant.size,
        "requires": dict(variant.requires),
        "memory": None if variant.memory is None else variant.memory.model_dump(),
        "published": None
        if variant.published is None
        else variant.published.model_dump(exclude={"memory", "requires", "provider"}),
        "pulled": None if variant.pulled is None else asdict(variant.pulled),
        "problem": variant.problem,
    }


def _iter_details(variant: Variant) -> Iterator[str]:
    if variant.memory is not None:
        yield f"memory: {_format_size(variant.memory.peak)} for {variant.memory.context:,} tokens of context"
    if variant.requires:
        yield "requires: " + ", ".join(f"{name}{versions}" for name, versions in variant.requires.items())
    if variant.pulled is not None:
        yield f"pulled from {variant.pulled.repository} at {variant.pulled.commit}"
    if variant.published is not None:
        one = variant.published
        status = "" if one.published else " (not published yet)"
        yield f"on the hub: {one.repository} at {one.revision}, {one.subfolder or 'root folder'}{status}"
    if variant.problem is not None:
        yield f"damaged: {variant.problem}"


def _format_location(variant: Variant) -> str:
    if variant.problem is not None:
        return f"damaged: {variant.path}"
    if variant.path is not None:
        return str(variant.path)
    return "on the hub" if variant.published and variant.published.published else "not published yet"


def _memory(variant: Variant) -> int | None:
    return None if variant.memory is None else variant.memory.peak


def _format_size(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _cells(*texts: str) -> list[Any]:
    from rich.text import Text

    return [Text(text) for text in texts]


def _make_console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _print_json(value: object) -> None:
    from gptoss_runtime.cli.render import print_json

    print_json(_make_console(), value)


@contextmanager
def _progress_bar(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Shows a progress bar if stderr is a terminal; yields the function that updates it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Bar(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("connecting to the hub", total=None)
        stage = ""

        def show(progress: Progress) -> None:
            nonlocal stage
            if progress.stage != stage:
                stage = progress.stage
                bar.reset(task, total=progress.total or None)
            text = "waiting for another pull" if stage == "waiting" else f"{stage} {progress.file[-40:]}"
            bar.update(task, completed=progress.done, description=text)

        yield show
