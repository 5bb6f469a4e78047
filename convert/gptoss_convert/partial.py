"""The folder of a conversion in progress, beside its output: locked meanwhile, kept after an interrupt.

``out`` is written in ``.out.partial``. Unless the input was wrong, an interrupted conversion leaves its weights and
their journal there for ``--resume``; nothing in that folder can be mistaken for an artifact. Knows paths and locks;
writing.py resumes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gptoss_convert import output
from gptoss_convert.errors import ConversionError, OutputError

_LOCK, _WEIGHTS, _SCRATCH, _JOURNAL = "lock", "weights", "scratch", "journal.jsonl"


class PartialFolder:
    """A locked folder: ``weights`` survives an interrupted run, ``scratch`` does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = folder / _WEIGHTS
        self.scratch = folder / _SCRATCH

    @property
    def journal(self) -> Path:
        """The journal of the weights."""
        return self.weights / _JOURNAL


def locate_partial(out: Path) -> Path:
    """The partial folder of an output."""
    return out.parent / f".{out.name}.partial"


@contextmanager
def open_partial(out: Path, *, resume: bool) -> Iterator[PartialFolder]:
    """Creates and locks the partial folder of an output; removes it afterwards unless a later run can resume.

    Args:
        out: the output; missing parents are created, and removed again if the conversion fails.
        resume: keep the weights that an earlier run left.

    Raises:
        OutputError: the folder cannot be created, or another conversion is using it.
    """
    partial = PartialFolder(locate_partial(out))
    with output.make_parents(out), _lock(partial.folder, out) as lock:
        keep = False
        try:
            _prepare(partial, resume=resume)
            yield partial
        except BaseException as error:
            wrong_input = isinstance(error, ConversionError) and not isinstance(error, OutputError)
            keep = not wrong_input and _has_entries(partial.journal)
            if keep and isinstance(error, OutputError):
                kept = f"The weights so far are kept in {partial.folder.name}; --resume continues from them."
                error.remedy = f"{error.remedy} {kept}"
            raise
        finally:
            shutil.rmtree(partial.scratch, ignore_errors=True)
            lock.release()  # Windows does not remove open files
            if not keep:
                shutil.rmtree(partial.folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path, out: Path) -> Iterator[FileLock]:
    """Holds the lock of a folder, which is created if needed."""
    try:
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise OutputError(
            f"another conversion is writing {out}", remedy="Wait for it to finish, or give another folder."
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
