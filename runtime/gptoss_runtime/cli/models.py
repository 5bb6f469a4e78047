"""``gptoss models``: which there are, which are here, fetching and deleting them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_runtime.cli.options import Json

if TYPE_CHECKING:
    from gptoss_runtime.models import Progress, Registry, Variant

models = typer.Typer(no_args_is_help=True, add_completion=False, help="Models by name: list, pull, info, remove.")

Name = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name or alias, or NAME:TARGET.")]
Target = Annotated[
    str | None, typer.Option("--target", "-t", help="Which variant; without it, the one that runs best here.")
]


@models.command("list")
def list_models(
    here: Annotated[bool, typer.Option("--here", help="Only those on this machine.")] = False,
    json_output: Json = False,
) -> None:
    """Show every model and variant: where it is, or how large its download."""
    from gptoss_runtime.cli.render import plain_table

    found = _registry().list(here=here)
    console = _console()
    if json_output:
        _print_json([_plain(variant) for variant in found])
        return
    table = plain_table("model", "target", "size", "memory", "where")
    for one in found:
        table.add_row(*_cells(one.model, one.target, _gb(one.size), _gb(_memory(one)), _where(one)))
    console.print(table)


@models.command()
def pull(name: Name, target: Target = None, json_output: Json = False) -> None:
    """Download a variant: resumed where it was cut, checked against its manifest, there only once it is whole."""
    with _progress(quiet=json_output) as progress:
        variant = _registry().pull(name, target, progress)
    if json_output:
        _print_json(_plain(variant))
    else:
        _console().print(f"{variant.id} is in {variant.path}\nNext: gptoss chat {variant.path}", markup=False)


@models.command()
def info(name: Name, json_output: Json = False) -> None:
    """Show a model's variants, which one this machine would use, and why."""
    registry = _registry()
    variants, choice = registry.info(name), _choice(registry, name)
    if json_output:
        _print_json({"variants": [_plain(variant) for variant in variants], "choice": choice})
        return
    console = _console()
    for one in variants:
        console.print(f"{one.id}  {_gb(one.size)}, {_where(one)}", markup=False)
        for line in _details(one):
            console.print(f"  {line}", markup=False)
    console.print(choice["reason"], markup=False, style="green" if choice["target"] else "yellow")


@models.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="NAME:TARGET; a name, if one variant was pulled.")],
    json_output: Json = False,
) -> None:
    """Delete a variant that was pulled, or what an interrupted pull left; nothing that was not pulled."""
    folder = _registry().remove(name)
    if json_output:
        _print_json({"removed": str(folder)})
    else:
        _console().print(f"removed {folder}", markup=False)


def _registry() -> Registry:
    from gptoss_runtime.models import Registry

    return Registry()


def _choice(registry: Registry, name: str) -> dict[str, Any]:
    """What would be used here: of those on this machine, or else of all there are."""
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


def _plain(variant: Variant) -> dict[str, Any]:
    """A variant as JSON has it."""
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


def _details(variant: Variant) -> Iterator[str]:
    if variant.memory is not None:
        yield f"memory: {_gb(variant.memory.peak)} at {variant.memory.context:,} positions"
    if variant.requires:
        yield "asks for: " + ", ".join(f"{name}{versions}" for name, versions in variant.requires.items())
    if variant.pulled is not None:
        yield f"pulled from {variant.pulled.repository} at {variant.pulled.commit}"
    if variant.published is not None:
        one = variant.published
        yet = "" if one.published else " (not published yet)"
        yield f"on the hub: {one.repository} at {one.revision}, {one.subfolder or 'its root'}{yet}"
    if variant.problem is not None:
        yield f"damaged: {variant.problem}"


def _where(variant: Variant) -> str:
    if variant.problem is not None:
        return f"damaged: {variant.path}"
    if variant.path is not None:
        return str(variant.path)
    return "on the hub" if variant.published and variant.published.published else "not published yet"


def _memory(variant: Variant) -> int | None:
    return None if variant.memory is None else variant.memory.peak


def _gb(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _cells(*texts: str) -> list[Any]:
    from rich.text import Text

    return [Text(text) for text in texts]


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _print_json(value: object) -> None:
    from gptoss_runtime.cli.render import print_json

    print_json(_console(), value)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Bar(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("asking the hub", total=None)
        stage = ""

        def show(progress: Progress) -> None:
            nonlocal stage
            if progress.stage != stage:
                stage = progress.stage
                bar.reset(task, total=progress.total or None)
            text = "another process pulls it: waiting" if stage == "waiting" else f"{stage} {progress.file[-40:]}"
            bar.update(task, completed=progress.done, description=text)

        yield show
