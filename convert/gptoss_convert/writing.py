"""Runs recipes and appends what they make to the external data files: in order, in bounded memory, resumable.

While one recipe's bytes are hashed and written, the next one is made and those before are read back. A journal says
after each recipe how far the files have come and with which checksum, so that a conversion that was killed goes on
after the last whole recipe, and ends with the same bytes. Knows recipes; knows nothing of graphs or checkpoints.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from gptoss_convert.data_files import Files, Known, Mark, Marks, ReadBack, Written
from gptoss_convert.errors import CheckpointError, MemoryLimitTooLow, OutputError
from gptoss_convert.weights import Array, Extent, GroupReport, Recipe, RecipeResult, TensorSpec, plan_layout

Progress = Callable[[int, int], None]
_FINITE = 1 << 22  # values looked at at a time
_EXPONENT = np.uint16(0x7F80)  # of bfloat16: all ones where a value is infinite or not a number
_MEMORY = 2 << 30  # for two recipes at a time, where nothing else is said


@dataclass(frozen=True)
class Settings:
    """How to write.

    Attributes:
        progress: called with (bytes done, bytes in all).
        memory: bytes that recipes may take; ``None``: two at a time where they are small.
        file_limit: bytes that a file may have; ``None``: one file.
        journal: file of the journal; ``None``: nothing to resume by. What it and the data files hold is continued.
        request: what is asked for, as a digest: a journal of another request is not continued.
    """

    progress: Progress | None = None
    memory: int | None = None
    file_limit: int | None = None
    journal: Path | None = None
    request: str = ""


@dataclass(frozen=True)
class WrittenWeights:
    """The external data files by name, where each initializer lies, and the reports."""

    files: dict[str, Written]
    nbytes: int
    extents: dict[str, Extent]
    groups: dict[str, GroupReport] = field(default_factory=dict)

    @property
    def checksums(self) -> dict[str, str]:
        """sha256 of every file."""
        return {name: file.sha256 for name, file in self.files.items()}


def write(recipes: Sequence[Recipe], folder: Path, name: str, settings: Settings | None = None) -> WrittenWeights:
    """Runs every recipe and writes what they make.

    Args:
        recipes: in file order.
        folder: an existing folder; its files of that name are replaced, or continued as the journal says.
        name: of the first external data file.
        settings: ``None``: the defaults.

    Raises:
        OutputError: the files cannot be written (no space, no permission), or give back other bytes.
        CheckpointError: weights that were to be rounded are infinite or not numbers.
        MemoryLimitTooLow: one recipe alone takes more than was allowed.
    """
    settings = settings or Settings()
    extents, sizes = plan_layout(recipes, name, settings.file_limit)
    total = sum(sizes.values())
    _check_memory(recipes, settings.memory)
    groups: dict[str, GroupReport] = {}
    journal = Journal(settings.journal, settings.request)
    try:
        # Our own threads keep the cores busy; BLAS's, beside them, wait for each other: three times the work.
        known = Known(folder, list(sizes))
        kept = _restore(recipes, journal, known, groups)
        with Files(known) as files, journal.appending(kept), threadpool_limits(1, user_api="blas"):
            _check_room(folder, total - files.written)
            with ReadBack(known) as back:
                for recipe, made in made_ahead(recipes[kept:], settings.memory or _MEMORY):
                    _require_finite(recipe, made)
                    _report_of(recipe, groups).add(recipe, made)
                    for done in _put(files, recipe, made, extents):
                        if settings.progress:
                            settings.progress(done, total)
                    back.follow(marks := files.marks())
                    journal.add(marks, made)
                    del made  # before the next one is waited for
            written = files.close()
    except OSError as error:
        raise OutputError(
            f"{error.filename or folder / name}: {error.strerror or error}",
            remedy=f"The weights need {total / 1e9:.2f} GB in a writable folder.",
        ) from error
    return WrittenWeights(written, total, extents, groups)


def _put(files: Files, recipe: Recipe, made: RecipeResult, extents: Mapping[str, Extent]) -> Iterator[int]:
    for output, array in zip(recipe.outputs, made.arrays, strict=True):
        yield from files.put(extents[output.name], _bytes_of(output, array))


def made_ahead(recipes: Sequence[Recipe], memory: int) -> Iterator[tuple[Recipe, RecipeResult]]:
    """Each recipe and what it makes; the next one is being made meanwhile, if both have room in ``memory``."""
    with ThreadPoolExecutor(1, thread_name_prefix="recipe") as pool:
        future = None
        for recipe, following in zip_longest(recipes, recipes[1:]):
            made = (future or pool.submit(_make, recipe)).result()
            together = recipe.working_set + following.working_set if following else 0
            future = pool.submit(_make, following) if following and together <= memory else None
            yield recipe, made
            del made  # before the next one is waited for


def _make(recipe: Recipe) -> RecipeResult:
    with np.errstate(over="ignore", invalid="ignore"):  # refused in our own words
        return recipe.make()


class Journal:
    """One line of JSON for the request, then one for each recipe that was written."""

    def __init__(self, file: Path | None, request: str) -> None:
        self._file = file
        self._head = json.dumps({"request": request}) + "\n"
        self._stream: BinaryIO | None = None
        self._lines: list[str] = []

    def entries(self) -> list[dict[str, Any]]:
        """What was written under the same request, oldest first; a torn last line does not count."""
        try:
            lines = self._file.read_text("utf-8").splitlines(keepends=True) if self._file else []
        except (FileNotFoundError, UnicodeDecodeError):
            return []
        if not lines or lines[0] != self._head:
            return []
        entries = []
        for line in lines[1:]:
            try:
                entry = json.loads(line) if line.endswith("\n") else None
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                break
            entries.append(entry)
            self._lines.append(line)
        return entries

    @contextmanager
    def appending(self, kept: int) -> Iterator[None]:
        """Open for ``add``: cut to the first ``kept`` entries, or begun anew if there were none."""
        if self._file is None:
            yield
            return
        whole = "".join([self._head, *self._lines[:kept]]).encode() if self._lines else b""
        with suppress(FileNotFoundError):
            os.truncate(self._file, len(whole))
        with closing(self._file.open("ab", buffering=0)) as self._stream:
            self._stream.write(b"" if whole else self._head.encode())
            yield

    def add(self, marks: Marks, made: RecipeResult) -> None:
        """Notes that a recipe's bytes are in the files."""
        if self._stream:
            error = [made.squared_error, made.squared_norm, made.max_error]
            self._stream.write((json.dumps({"files": marks, "error": error}) + "\n").encode())


def _restore(recipes: Sequence[Recipe], journal: Journal, known: Known, groups: dict[str, GroupReport]) -> int:
    """Takes up what an earlier run left, as far as it is whole, and drops the rest; how many recipes that is."""
    done = 0
    for recipe, entry in zip(recipes, journal.entries(), strict=False):
        marks = {name: Mark(int(end), str(sha256)) for name, (end, sha256) in entry["files"].items()}
        if not known.advance(marks):
            break
        _report_of(recipe, groups).add(recipe, RecipeResult([], *entry["error"]))
        done += 1
    known.cut()
    return done


def _report_of(recipe: Recipe, groups: dict[str, GroupReport]) -> GroupReport:
    return groups.setdefault(recipe.group, GroupReport(recipe.scheme))


def _check_memory(recipes: Sequence[Recipe], memory: int | None) -> None:
    largest = max(recipes, key=lambda recipe: recipe.working_set, default=None)
    if memory is not None and largest is not None and largest.working_set > memory:
        raise MemoryLimitTooLow(
            f"making {largest.outputs[0].name} takes {largest.working_set / 1e9:.1f} GB, and {memory / 1e9:.1f} GB "
            "of what is allowed are left for weights",
            remedy="Allow more with --max-memory, or choose a preset that stores that tensor in fewer bits.",
        )


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder}: {free / 1e9:.2f} GB are free, and {needed / 1e9:.2f} GB of weights are still to be written",
            remedy="Free some room, or give a folder on another disk.",
        )


def _require_finite(recipe: Recipe, made: RecipeResult) -> None:
    rounded = made.squared_error is not None and not math.isfinite(made.squared_error + made.squared_norm)
    for output, array in zip(recipe.outputs, made.arrays, strict=True):
        if rounded or not _all_finite(array):
            raise CheckpointError(
                f"{output.name}: weights that are not finite, or beyond what {recipe.scheme} holds",
                remedy="Check the checkpoint's weights for NaN and infinities; where there are none, convert for cpu.",
            )


def _all_finite(array: Array) -> bool:
    """Whether no value is infinite or not a number; a copy of a gigabyte of bfloat16 is looked at in pieces."""
    if array.dtype.kind in "iub":
        return True
    flat = array.reshape(-1)
    if array.dtype == ml_dtypes.bfloat16:  # by its bits, in a fifth of the time
        return not any(
            bool((flat[at : at + _FINITE].view(np.uint16) & _EXPONENT == _EXPONENT).any())
            for at in range(0, flat.size, _FINITE)
        )
    return all(bool(np.isfinite(flat[at : at + _FINITE]).all()) for at in range(0, flat.size, _FINITE))


def _bytes_of(output: TensorSpec, array: Array) -> memoryview:
    if array.nbytes != output.nbytes:
        raise AssertionError(
            f"{output.name}: {array.dtype}{list(array.shape)} is not {output.dtype}{list(output.shape)}"
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
