"""Output folders that appear at once or not at all, and never in place of a user's own files.

Knows paths and the file system; of what is written, only how JSON is.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gptoss_convert.errors import OutputError, OutputExists


def require_free(out: Path, *, overwrite: bool, marker: str) -> None:
    """Checks that an output path is free, or holds what may be replaced: an earlier output, never a user's own files.

    Args:
        out: the path.
        overwrite: whether replacing was asked for.
        marker: a file that every output of this kind has.

    Raises:
        OutputExists: it is not.
        OutputError: what is there cannot be seen.
    """
    if out.resolve() == Path.cwd():
        raise OutputError(f"{out} is the current folder", remedy="Name a folder in it that is not there yet.")
    try:
        free = not out.exists() or (out.is_dir() and not any(out.iterdir()))
        replaceable = (out / marker).is_file()
    except OSError as error:
        raise OutputError(f"{out}: {error.strerror or error}") from error
    if free:
        return
    if not overwrite:
        raise OutputExists(f"{out} already exists", remedy="Give another folder, or --overwrite to replace it.")
    if not replaceable:
        raise OutputExists(
            f"{out} holds no {marker}: it is not an earlier output and won't be replaced",
            remedy="Give another folder, or remove it yourself.",
        )


@contextmanager
def make_parents(out: Path) -> Iterator[None]:
    """Makes the folders above an output; those that were not there are gone again if nothing is put into them.

    Raises:
        OutputError: they cannot be made.
    """
    absent: list[Path] = []
    try:
        try:
            absent += [parent for parent in out.parents if not parent.exists()]
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{out.parent}: {error.strerror or error}") from error
        yield
    finally:
        for parent in absent:
            with suppress(OSError):  # something is in it
                parent.rmdir()


@contextmanager
def temporary_sibling(out: Path) -> Iterator[Path]:
    """A folder beside the output, on the same disk, that is gone afterwards whatever happens."""
    with make_parents(out):
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        except OSError as error:
            raise OutputError(f"{out.parent}: {error.strerror or error}") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(made: Path, out: Path) -> None:
    """Puts the finished folder in place; what was there before goes only when the new one is there."""
    old = made.parent / "replaced"
    try:
        made.chmod(0o755)  # mkdtemp's folders are private
        try:
            if out.exists():
                out.rename(old)
            made.rename(out)
        except BaseException:  # an interrupt, too, must not cost the old one
            if old.exists() and not out.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise OutputError(
            f"{out}: {error.strerror or error}", remedy="Close programs that have files of that folder open."
        ) from error


def link_or_copy(source: Path, copy: Path) -> None:
    """The same file under a second name, or a copy where the file system has no hard links.

    Raises:
        OutputError: neither can be made.
    """
    try:
        copy.unlink(missing_ok=True)
        try:
            os.link(source, copy)
        except OSError:
            shutil.copyfile(source, copy)
    except OSError as error:
        raise OutputError(f"{copy}: {error.strerror or error}") from error


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """JSON with an indent of 2 and the same line ends everywhere."""
    file.write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
