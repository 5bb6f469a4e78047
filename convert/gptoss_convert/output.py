"""Output folders that appear complete or not at all, and never replace a user's own files.

Knows paths and the file system, and the form of our JSON files; knows nothing of their content.
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
    """Checks that an output path is free, or holds an earlier output that may be replaced.

    Args:
        out: the path.
        overwrite: whether an earlier output may be replaced.
        marker: name of a file that every output of this kind has; a folder without it is never replaced.

    Raises:
        OutputExists: the path is in use.
        OutputError: it cannot be read, or is the current folder.
    """
    if out.resolve() == Path.cwd():
        raise OutputError(f"{out} is the current folder", remedy="Give the name of a new folder in it.")
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
            f"{out} has no {marker}: it is not an earlier output and won't be replaced",
            remedy="Give another folder, or remove it yourself.",
        )


@contextmanager
def make_parents(out: Path) -> Iterator[None]:
    """Creates the parents of an output; afterwards removes those that it created and that are still empty.

    Raises:
        OutputError: they cannot be created.
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
            with suppress(OSError):  # not empty
                parent.rmdir()


@contextmanager
def temporary_sibling(out: Path) -> Iterator[Path]:
    """A temporary folder beside the output, and so on the same disk; always removed afterwards."""
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
    """Moves a finished folder to the output path; an earlier output is removed only after that."""
    old = made.parent / "replaced"
    try:
        made.chmod(0o755)  # mkdtemp creates private folders
        try:
            if out.exists():
                out.rename(old)
            made.rename(out)
        except BaseException:  # an interrupt must not lose the old output
            if old.exists() and not out.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise OutputError(
            f"{out}: {error.strerror or error}", remedy="Close programs that have files in that folder open."
        ) from error


def link_or_copy(source: Path, copy: Path) -> None:
    """Creates a hard link to a file, or a copy where the file system has no hard links.

    Raises:
        OutputError: neither can be created.
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
    """Writes JSON with an indent of 2, UTF-8, and the same line endings on every system."""
    file.write_bytes((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
