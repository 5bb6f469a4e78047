"""Runs recipes and appends their results to the external data files: in order, in bounded memory, resumable.

While one recipe's result is hashed and written, the next recipe runs. After each recipe a journal records how far the
files have come, with checksums. An interrupted conversion continues after the last complete recipe and ends with the
same bytes. Knows recipes; knows nothing of graphs or checkpoints.

onnx-ir's ``LazyTensor`` and ``save(external_data=...)`` do part of this (1.1.0) and are not used: a killed save leaves
nothing to resume, checksums need a second read of the file, a recipe with two outputs runs twice or stays in memory,
its memory limit ignores what a recipe takes while it runs, and its offsets and shard names differ.
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

from gptoss_convert.data_files import DataFiles, Prefix, WrittenFile
from gptoss_convert.errors import CheckpointError, MemoryLimitTooLow, OutputError
from gptoss_convert.weights import Array, Extent, GroupReport, Recipe, RecipeResult, TensorSpec, plan_layout

Progress = Callable[[int, int], None]
_DEFAULT_MEMORY = 2 << 30  # bytes; two recipes at a time where they are smaller
_FINITE_CHUNK = 1 << 22  # values checked at a time
_BFLOAT16_EXPONENT = np.uint16(0x7F80)  # all ones where a value is infinite or NaN


@dataclass(frozen=True)
class WriteOptions:
    """Options for :func:`write`.

    Attributes:
        progress: called with (bytes written, total bytes).
        memory: limit in bytes for running recipes; ``None``: two at a time where they are small.
        file_limit: largest size of a file in bytes; ``None``: one file.
        journal: the journal's file; if it exists, writing resumes from it. ``None``: not resumable.
        request: digest of everything the weights depend on; a journal with another one is not resumed.
    """

    progress: Progress | None = None
    memory: int | None = None
    file_limit: int | None = None
    journal: Path | None = None
    request: str = ""


@dataclass(frozen=True)
class WrittenWeights:
    """What :func:`write` wrote.

    Attributes:
        files: external data files by name.
        nbytes: size of all files.
        extents: location of each initializer.
        groups: report by tensor group.
    """

    files: dict[str, WrittenFile]
    nbytes: int
    extents: dict[str, Extent]
    groups: dict[str, GroupReport] = field(default_factory=dict)

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of every file, by name."""
        return {name: file.sha256 for name, file in self.files.items()}


def write(recipes: Sequence[Recipe], folder: Path, name: str, options: WriteOptions | None = None) -> WrittenWeights:
    """Runs every recipe and writes the results.

    Args:
        recipes: in file order.
        folder: an existing folder; its files of that name are replaced, or continued as the journal says.
        name: of the first external data file.
        options: ``None``: the defaults.

    Raises:
        OutputError: the files cannot be written (no space, no permission).
        CheckpointError: weights that were to be rounded are infinite or NaN.
        MemoryLimitTooLow: a single recipe needs more memory than was allowed.
    """
    options = options or WriteOptions()
    extents, sizes = plan_layout(recipes, name, options.file_limit)
    total = sum(sizes.values())
    _check_memory(recipes, options.memory)
    journal = Journal(options.journal, options.request)
    groups: dict[str, GroupReport] = {}
    try:
        # Our own threads keep the cores busy. BLAS's threads beside them wait for each other and triple the time.
        with DataFiles(folder, list(sizes)) as files, threadpool_limits(1, user_api="blas"):
            kept = _resume(recipes, journal, files, groups)
            _check_free_space(folder, total - files.written)
            with journal.reopen(kept):
                for recipe, result in run_recipes(recipes[kept:], options.memory or _DEFAULT_MEMORY):
                    _check_finite(recipe, result)
                    _group_report(recipe, groups).add(recipe, result)
                    for done in _append(files, recipe, result, extents):
                        if options.progress:
                            options.progress(done, total)
                    journal.add(files.take_prefixes(), result)
                    del result  # frees its memory before waiting for the next one
            written = files.close()
    except OSError as error:
        raise OutputError(
            f"{error.filename or folder / name}: {error.strerror or error}",
            remedy=f"The weights need {total / 1e9:.2f} GB in a writable folder.",
        ) from error
    return WrittenWeights(written, total, extents, groups)


def _append(files: DataFiles, recipe: Recipe, result: RecipeResult, extents: Mapping[str, Extent]) -> Iterator[int]:
    for output, array in zip(recipe.outputs, result.arrays, strict=True):
        yield from files.append(extents[output.name], _to_bytes(output, array))


def run_recipes(recipes: Sequence[Recipe], memory: int) -> Iterator[tuple[Recipe, RecipeResult]]:
    """Yields each recipe and its result; the next recipe runs meanwhile if ``memory`` bytes suffice for both."""
    with ThreadPoolExecutor(1, thread_name_prefix="recipe") as pool:
        future = None
        for recipe, following in zip_longest(recipes, recipes[1:]):
            result = (future or pool.submit(_run, recipe)).result()
            together = recipe.working_set + following.working_set if following else 0
            future = pool.submit(_run, following) if following and together <= memory else None
            yield recipe, result
            del result  # frees its memory before waiting for the next one


def _run(recipe: Recipe) -> RecipeResult:
    with np.errstate(over="ignore", invalid="ignore"):  # _check_finite raises our own error
        return recipe.make()


class Journal:
    """A file with one line of JSON for the request, then one for each recipe that was written.

    Args:
        file: the file; ``None``: nothing is recorded.
        request: see :class:`WriteOptions`.
    """

    def __init__(self, file: Path | None, request: str) -> None:
        self._file = file
        self._head = json.dumps({"request": request}) + "\n"
        self._stream: BinaryIO | None = None
        self._lines: list[str] = []

    def read_entries(self) -> list[dict[str, Any]]:
        """Entries of the same request, oldest first; an incomplete last line is ignored."""
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
    def reopen(self, kept: int) -> Iterator[None]:
        """Opens the file for :meth:`add` after its first ``kept`` entries, dropping the rest."""
        if self._file is None:
            yield
            return
        whole = "".join([self._head, *self._lines[:kept]]).encode() if self._lines else b""
        with suppress(FileNotFoundError):
            os.truncate(self._file, len(whole))
        with closing(self._file.open("ab", buffering=0)) as self._stream:
            self._stream.write(b"" if whole else self._head.encode())
            yield

    def add(self, prefixes: Mapping[str, Prefix], result: RecipeResult) -> None:
        """Records that a recipe's result is in the files."""
        if self._stream:
            error = [result.squared_error, result.squared_norm, result.max_error]
            self._stream.write((json.dumps({"files": prefixes, "error": error}) + "\n").encode())


def _resume(recipes: Sequence[Recipe], journal: Journal, files: DataFiles, groups: dict[str, GroupReport]) -> int:
    """Verifies what an earlier run wrote and drops the rest; returns the number of recipes that are complete."""
    done = 0
    for recipe, entry in zip(recipes, journal.read_entries(), strict=False):
        prefixes = {name: Prefix(int(length), str(sha256)) for name, (length, sha256) in entry["files"].items()}
        if not files.verify(prefixes):
            break
        _group_report(recipe, groups).add(recipe, RecipeResult([], *entry["error"]))
        done += 1
    files.truncate()
    return done


def _group_report(recipe: Recipe, groups: dict[str, GroupReport]) -> GroupReport:
    return groups.setdefault(recipe.group, GroupReport(recipe.scheme))


def _check_memory(recipes: Sequence[Recipe], memory: int | None) -> None:
    largest = max(recipes, key=lambda recipe: recipe.working_set, default=None)
    if memory is not None and largest is not None and largest.working_set > memory:
        raise MemoryLimitTooLow(
            f"making {largest.outputs[0].name} takes {largest.working_set / 1e9:.1f} GB, but --max-memory leaves "
            f"{memory / 1e9:.1f} GB for weights",
            remedy="Raise --max-memory, or choose a preset that stores that tensor in fewer bits.",
        )


def _check_free_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder}: {free / 1e9:.2f} GB free, but {needed / 1e9:.2f} GB of weights are still to be written",
            remedy="Free some space, or give a folder on another disk.",
        )


def _check_finite(recipe: Recipe, result: RecipeResult) -> None:
    error = result.squared_error
    overflow = error is not None and not math.isfinite(error + result.squared_norm)
    for output, array in zip(recipe.outputs, result.arrays, strict=True):
        if overflow or not _all_finite(array):
            raise CheckpointError(
                f"{output.name}: has weights that are not finite, or beyond the range of {recipe.scheme}",
                remedy="Check the checkpoint's weights for NaN and infinities; if there are none, convert for cpu.",
            )


def _all_finite(array: Array) -> bool:
    """Whether no value is infinite or NaN; large arrays are checked in pieces, to bound the temporaries."""
    if array.dtype.kind in "iub":
        return True
    flat = array.reshape(-1)
    if array.dtype == ml_dtypes.bfloat16:  # by its bits: five times as fast as isfinite
        return not any(
            bool((flat[at : at + _FINITE_CHUNK].view(np.uint16) & _BFLOAT16_EXPONENT == _BFLOAT16_EXPONENT).any())
            for at in range(0, flat.size, _FINITE_CHUNK)
        )
    return all(bool(np.isfinite(flat[at : at + _FINITE_CHUNK]).all()) for at in range(0, flat.size, _FINITE_CHUNK))


def _to_bytes(output: TensorSpec, array: Array) -> memoryview:
    if array.nbytes != output.nbytes:
        raise AssertionError(
            f"{output.name}: {array.dtype}{list(array.shape)} is not {output.dtype}{list(output.shape)}"
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
