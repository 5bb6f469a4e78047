"""Shared by the converter's commands: arguments, progress bars, and a run's time and memory.

``gptoss --help`` imports every module of commands, so these import at the top only what declares arguments. What does
the work is imported in the function that runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an existing output after the new one is complete.")
]
Report = Callable[[int, int], None]  # called with (done, total)


@dataclass
class Cost:
    """Seconds since this object was created, and the process's peak memory in bytes."""

    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Elapsed so far."""
        return time.perf_counter() - self.started

    @property
    def peak_memory(self) -> int:
        """Peak of the whole process since its start, in bytes."""
        from gptoss_runtime.machine import hardware

        return hardware.peak_memory()

    def figures(self) -> dict[str, Any]:
        """Seconds and peak memory so far, for JSON."""
        return {"seconds": self.seconds, "peak_memory": self.peak_memory}

    def report(self, folder: Path) -> dict[str, Any]:
        """What it cost to write a folder, for JSON."""
        return {"path": str(folder), **self.figures(), "bytes": folder_size(folder)}

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, peak memory {self.peak_memory / 2**20:,.0f} MB"


@contextmanager
def progress_bar(text: str, *, size: bool = True) -> Iterator[Report]:
    """One bar on stderr, updated by a function of (done, total).

    Args:
        text: the bar's label.
        size: whether the numbers are bytes; else they are counts.
    """
    with _progress() as progress:
        yield _add_bar(progress, text, size)


@contextmanager
def conversion_bars() -> Iterator[tuple[Report, Report]]:
    """Two bars on stderr: bytes of weights written, then parts of the first run."""
    with _progress() as progress:
        yield _add_bar(progress, "weights", True), _add_bar(progress, "first run", False)


@contextmanager
def _progress() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def _add_bar(bars: Progress, text: str, size: bool) -> Report:
    from rich.filesize import decimal

    task = bars.add_task(text, total=None, count="", visible=False)

    def report(done: int, total: int) -> None:
        count = f"{decimal(done)} of {decimal(total)}" if size else f"{done}/{total}"
        bars.update(task, completed=done, total=total, count=count, visible=True)

    return report


def folder_size(folder: Path) -> int:
    """Total bytes of the files directly in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())
