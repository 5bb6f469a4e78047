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
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gptoss_convert.writing import Progress as Report
from gptoss_runtime import hardware

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
    console = Console(stderr=True)
    counter = DownloadColumn() if size else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), counter, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())
