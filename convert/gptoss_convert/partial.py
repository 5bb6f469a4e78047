"""The folder in which a conversion grows, beside its output: locked while it does, kept when it is cut short.

``out`` grows in ``.out.partial``. A conversion that ends otherwise than by a wrong input leaves its weights there and
their journal, for ``--resume``; nothing there can be mistaken for an artifact. Knows paths and locks; writing.py knows
what is resumed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gptoss_convert import output
from gptoss_convert.errors import ConversionError, OutputError

_LOCK, _WEIGHTS, _JOURNAL = "lock", "weights", "journal.jsonl"


class PartialFolder:
    """A locked folder: ``weights`` outlives a run that is cut short, ``scratch`` does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = folder / _WEIGHTS
        self.scratch = folder / "scratch"

    @property
    def journal(self) -> Path:
        """Of the weights."""
        return self.weights / _JOURNAL


def locate_partial(out: Path) -> Path:
    """Where ``out`` grows."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def open_partial(out: Path, *, resume: bool) -> Iterator[PartialFolder]:
    """The partial folder of an output, for as long as it is needed; empty unless something is resumed.

    Args:
        out: the output; its parents are made, and go again if nothing comes of it.
        resume: keep the weights that an earlier run left.

    Raises:
        OutputError: the folder cannot be made, or another conversion is at work in it.
    """
    partial = PartialFolder(locate_partial(out))
    with output.make_parents(out), _locked(partial.folder, out) as lock:
        keep = False
        try:
            _prepare(partial, resume=resume)
            yield partial
        except BaseException as error:
            wrong_input = isinstance(error, ConversionError) and not isinstance(error, OutputError)
            keep = not wrong_input and _has_entries(partial.journal)
            if keep and isinstance(error, OutputError):
                kept = f"What was made is kept in {partial.folder.name}: --resume goes on with it."
                error.remedy = f"{error.remedy} {kept}"
            raise
        finally:
            shutil.rmtree(partial.scratch, ignore_errors=True)
            lock.release()  # Windows removes no file that is open
            if not keep:
                shutil.rmtree(partial.folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[FileLock]:
    """A folder, made if need be, with its lock held."""
    try:
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"another conversion is writing {out}", remedy="Wait for it to end, or give another folder."
        ) from error
    except OSError as error:
        raise OutputError(f"{out.parent}: {error.strerror or error}") from error
    try:
        yield lock
    finally:
        lock.release()


def _prepare(partial: PartialFolder, *, resume: bool) -> None:
    try:
        shutil.rmtree(partial.scratch, ignore_errors=True)
        if not resume:
            shutil.rmtree(partial.weights, ignore_errors=True)
        partial.weights.mkdir(exist_ok=True)
        partial.scratch.mkdir()
    except OSError as error:
        raise OutputError(f"{partial.folder}: {error.strerror or error}") from error


def _has_entries(journal: Path) -> bool:
    try:
        return journal.read_bytes().count(b"\n") > 1
    except OSError:
        return False
