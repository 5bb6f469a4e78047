"""What the converter's commands share: arguments, a progress bar, and how long and how much memory a run took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gptoss_convert.writing import Progress as Report
from gptoss_runtime.machine import hardware

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output, once the new one is whole.")]


@dataclass
class Cost:
    """Seconds since it was made; the process's peak memory in bytes."""

    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """So far."""
        return time.perf_counter() - self.started

    @property
    def peak_memory(self) -> int:
        """Of the whole process, from its start."""
        return hardware.peak_memory()

    def figures(self) -> dict[str, Any]:
        """So far, for JSON."""
        return {"seconds": self.seconds, "peak_memory": self.peak_memory}

    def report(self, folder: Path) -> dict[str, Any]:
        """What it cost to make a folder, for JSON."""
        return {"path": str(folder), **self.figures(), "bytes": folder_size(folder)}

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, peak memory {self.peak_memory / 2**20:,.0f} MB"


@contextmanager
def progress_bar(text: str, *, size: bool = True) -> Iterator[Report]:
    """A bar on stderr, as a function of (done, all): bytes, or a count if ``size`` is False."""
    with _bars() as bars:
        yield _bar(bars, text, size)


@contextmanager
def conversion_bars() -> Iterator[tuple[Report, Report]]:
    """Two bars on stderr: bytes of weights written, then parts of the first run."""
    with _bars() as bars:
        yield _bar(bars, "weights", True), _bar(bars, "first run", False)


@contextmanager
def _bars() -> Iterator[Progress]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars


def _bar(bars: Progress, text: str, size: bool) -> Report:
    task = bars.add_task(text, total=None, count="", visible=False)

    def report(done: int, total: int) -> None:
        count = f"{decimal(done)} of {decimal(total)}" if size else f"{done}/{total}"
        bars.update(task, completed=done, total=total, count=count, visible=True)

    return report


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())
