"""From recipes to the external data file, one tensor group at a time.

A recipe says which initializers it makes and how; it holds no data until it is run. Running them in order and appending
what they make to one file keeps the working set at one recipe's, whatever the size of the model. Knows nothing of
graphs: an initializer is a name, a dtype and a shape.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from gptoss_convert.errors import CheckpointError, OutputError

Array = np.ndarray[Any, np.dtype[Any]]
# Windows maps files at 64 KiB granularity; a large tensor that starts on one can be mapped instead of read.
_MAP_ALIGNMENT, _MAP_FROM = 1 << 16, 1 << 20
_ALIGNMENT = 64
_CHUNK = 16 << 20
_CAST_ROWS = 4096


@dataclass(frozen=True)
class TensorSpec:
    """An initializer to be: name, ONNX dtype and shape."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the external data file, in bytes."""
        return math.ceil(math.prod(self.shape) * self.dtype.bitwidth / 8)


@dataclass(frozen=True)
class Made:
    """What running a recipe gave.

    Attributes:
        arrays: one an output, of its shape, and of a dtype of the same bytes.
        squared_error: sum of (stored - exact)², None where nothing was rounded.
        squared_norm: sum of exact².
        max_error: largest |stored - exact|.
    """

    arrays: Sequence[Array]
    squared_error: float | None = None
    squared_norm: float = 0.0
    max_error: float = 0.0


def cast(stored: Array, dtype: np.dtype[Any] | type[np.generic]) -> Made:
    """A float tensor in another float type, with the error of rounding if there was any.

    Args:
        stored: as the checkpoint has it.
        dtype: float32 holds bfloat16 and float16 exactly; anything narrower may round.
    """
    result = stored.astype(dtype, copy=False)
    if result.dtype in (stored.dtype, np.float32):
        return Made([result])
    squared_error = squared_norm = max_error = 0.0
    for at in range(0, len(stored), _CAST_ROWS):
        exact = stored[at : at + _CAST_ROWS].astype(np.float64)
        error = result[at : at + _CAST_ROWS].astype(np.float64) - exact
        squared_error += float(np.square(error).sum())
        squared_norm += float(np.square(exact).sum())
        max_error = max(max_error, float(np.abs(error).max(initial=0.0)))
    return Made([result], squared_error, squared_norm, max_error)


@dataclass(frozen=True)
class Recipe:
    """How to make one or more initializers from the checkpoint.

    Attributes:
        outputs: what it makes, in the order of the arrays.
        make: runs it.
        group: tensor group for the report, such as "experts".
        scheme: how the group is stored, for the report.
    """

    outputs: tuple[TensorSpec, ...]
    make: Callable[[], Made]
    group: str
    scheme: str


@dataclass
class GroupReport:
    """What became of one tensor group: tensors, bytes, and the error of rounding if there was any."""

    scheme: str
    tensors: int = 0
    nbytes: int = 0
    squared_error: float = 0.0
    squared_norm: float = 0.0
    max_error: float = 0.0
    rounded: bool = False

    def add(self, recipe: Recipe, made: Made) -> None:
        """Counts one recipe's result in."""
        self.tensors += len(recipe.outputs)
        self.nbytes += sum(output.nbytes for output in recipe.outputs)
        if made.squared_error is not None:
            self.rounded = True
            self.squared_error += made.squared_error
            self.squared_norm += made.squared_norm
            self.max_error = max(self.max_error, made.max_error)

    @property
    def snr_db(self) -> float | None:
        """Signal to noise of the stored weights in dB; None where they are exact."""
        if not self.rounded or self.squared_error == 0:
            return None
        return 10 * math.log10(self.squared_norm / self.squared_error) if self.squared_norm else None


@dataclass(frozen=True)
class WrittenWeights:
    """The external data file: where each initializer lies, and the reports."""

    file: Path
    nbytes: int
    sha256: str
    extents: dict[str, tuple[int, int]]
    groups: dict[str, GroupReport] = field(default_factory=dict)


def layout(recipes: Sequence[Recipe]) -> tuple[dict[str, tuple[int, int]], int]:
    """(offset, length) in bytes of every initializer in the external data file, and the file's size."""
    extents, end = {}, 0
    for output in (output for recipe in recipes for output in recipe.outputs):
        alignment = _MAP_ALIGNMENT if output.nbytes >= _MAP_FROM else _ALIGNMENT
        start = -(-end // alignment) * alignment
        extents[output.name] = start, output.nbytes
        end = start + output.nbytes
    return extents, end


def write(recipes: Sequence[Recipe], file: Path, progress: Callable[[int, int], None] | None = None) -> WrittenWeights:
    """Runs every recipe and writes what they make.

    Args:
        recipes: in file order.
        file: the external data file; replaced if it exists.
        progress: called with (bytes done, bytes in all).

    Raises:
        OutputError: the file cannot be written; the text says why (no space, no permission).
        CheckpointError: weights that were to be rounded are infinite or not numbers.
    """
    extents, total = layout(recipes)
    digest, position = hashlib.sha256(), 0
    groups: dict[str, GroupReport] = {}
    try:
        with file.open("wb") as stream:
            for recipe in recipes:
                with np.errstate(over="ignore", invalid="ignore"):  # refused in our own words
                    made = recipe.make()
                _require_finite(recipe, made)
                groups.setdefault(recipe.group, GroupReport(recipe.scheme)).add(recipe, made)
                for output, array in zip(recipe.outputs, made.arrays, strict=True):
                    start, length = extents[output.name]
                    data = _bytes_of(output, array, length)
                    padding = memoryview(bytes(start - position))
                    for chunk in (padding, *_chunks(data)):
                        stream.write(chunk)
                        digest.update(chunk)
                    position = start + length
                if progress:
                    progress(position, total)
    except OSError as error:
        raise OutputError(
            f"{file}: {error.strerror or error}", remedy=f"The weights need {total / 1e9:.2f} GB in a writable folder."
        ) from error
    return WrittenWeights(file, total, digest.hexdigest(), extents, groups)


def _require_finite(recipe: Recipe, made: Made) -> None:
    if made.squared_error is not None and not math.isfinite(made.squared_error + made.squared_norm):
        raise CheckpointError(
            f"{recipe.outputs[0].name}: weights that are not finite, or beyond what {recipe.scheme} holds",
            remedy="Check the checkpoint's weights for NaN and infinities.",
        )


def _bytes_of(output: TensorSpec, array: Array, length: int) -> memoryview:
    if array.nbytes != length:
        raise AssertionError(
            f"{output.name}: {array.dtype}{list(array.shape)} is not {output.dtype}{list(output.shape)}"
        )
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _chunks(data: memoryview) -> Iterator[memoryview]:
    return (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
