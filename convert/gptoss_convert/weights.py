"""Recipes: which initializers a model has, how each is computed from the checkpoint, and where it is stored.

A recipe holds no data until it runs. writing.py runs them one after the other, so memory is that of one or two recipes,
whatever the size of the model. Knows nothing of graphs: an initializer is a name, a dtype and a shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert.errors import WorkflowError
from gptoss_convert.parallel import map_ordered
from gptoss_convert.quantise import QuantisedMatrix
from gptoss_convert.row_scaling import scale_rows

Array = np.ndarray[Any, np.dtype[Any]]
Item = TypeVar("Item")
# Windows maps files at a granularity of 64 KiB: a large tensor that starts on a multiple can be mapped instead of read.
_MAP_ALIGNMENT, _MAP_THRESHOLD = 1 << 16, 1 << 20
_ALIGNMENT = 64
_QUANTISER_TEMPORARIES = 400 << 20  # bytes; quantisers work piece by piece
_CAST_ROWS = 4096  # rows whose error is computed at a time, in float64


@dataclass(frozen=True)
class TensorSpec:
    """Name, ONNX dtype and shape of an initializer."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the external data file."""
        return math.ceil(math.prod(self.shape) * self.dtype.bitwidth / 8)


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe made.

    Attributes:
        arrays: one per output, of its shape and of a dtype with the same bytes.
        squared_error: sum of (stored - exact)²; None if nothing was rounded.
        squared_norm: sum of exact².
        max_error: largest |stored - exact|.
    """

    arrays: Sequence[Array]
    squared_error: float | None = None
    squared_norm: float = 0.0
    max_error: float = 0.0


def cast(stored: Array, dtype: np.dtype[Any] | type[np.generic]) -> RecipeResult:
    """Casts a float tensor and measures the rounding error.

    Args:
        stored: as in the checkpoint.
        dtype: of the result. float32 holds bfloat16 and float16 exactly; narrower types may round.
    """
    result = stored.astype(dtype, copy=False)
    if result.dtype in (stored.dtype, np.float32):
        return RecipeResult([result])
    squared_error = squared_norm = max_error = 0.0
    for at in range(0, len(stored), _CAST_ROWS):
        exact = stored[at : at + _CAST_ROWS].astype(np.float64)
        error = result[at : at + _CAST_ROWS].astype(np.float64) - exact
        squared_error += float(np.square(error).sum())
        squared_norm += float(np.square(exact).sum())
        max_error = max(max_error, float(np.abs(error).max(initial=0.0)))
    return RecipeResult([result], squared_error, squared_norm, max_error)


def cast_rows(stored: Array, exponents: NDArray[np.int32], dtype: np.dtype[Any] | type[np.generic]) -> RecipeResult:
    """Scales a matrix's rows, casts them and measures the rounding error, in terms of the unscaled weights.

    Args:
        stored: float [N, K], as in the checkpoint.
        exponents: row n is stored times 2^-exponents[n]; see row_scaling.py.
        dtype: of the result.
    """
    result, parts = np.empty(stored.shape, dtype), []
    for at in range(0, len(stored), _CAST_ROWS):
        rows = slice(at, at + _CAST_ROWS)
        scaled = scale_rows(stored[rows], exponents[rows])
        result[rows] = scaled
        error = np.ldexp(result[rows].astype(np.float64) - scaled, exponents[rows, None])
        exact = stored[rows].astype(np.float64)
        parts.append((np.square(error).sum(), np.square(exact).sum(), np.abs(error).max(initial=0.0)))
    squared_errors, squared_norms, errors = zip(*parts, strict=True)
    return RecipeResult([result], float(sum(squared_errors)), float(sum(squared_norms)), float(max(errors)))


def quantise_parts(
    outputs: Sequence[TensorSpec],
    items: Sequence[Item],
    make: Callable[[Item], QuantisedMatrix],
    place: Callable[[Array, Item, Array], None],
) -> RecipeResult:
    """Quantises a matrix part by part, several parts in parallel, and assembles codes and scales.

    Args:
        outputs: codes and scales as they are stored.
        items: what identifies each part, in order.
        make: quantises the part of an item; called in other threads.
        place: called as ``place(whole, item, part)``; copies a part's codes [N, K/block, bytes] or scales [N, K/block]
            into the whole array.
    """
    codes, scales = (np.empty(spec.shape, spec.dtype.numpy()) for spec in outputs)
    squared_error = squared_norm = max_error = 0.0
    for item, part in zip(items, map_ordered(make, items), strict=True):
        place(codes, item, part.packed.reshape(*part.scales.shape, -1))
        place(scales, item, part.scales.astype(scales.dtype, copy=False))
        squared_error, squared_norm = squared_error + part.squared_error, squared_norm + part.squared_norm
        max_error = max(max_error, part.max_error)
    return RecipeResult([codes, scales], squared_error, squared_norm, max_error)


@dataclass(frozen=True)
class Recipe:
    """How to compute one or more initializers from the checkpoint.

    Attributes:
        outputs: the initializers, in the order of the result's arrays.
        make: computes them.
        group: tensor group for the report, such as "experts".
        scheme: how the group is stored, for the report.
        read: bytes that it reads from the checkpoint.
    """

    outputs: tuple[TensorSpec, ...]
    make: Callable[[], RecipeResult]
    group: str
    scheme: str
    read: int = 0

    @property
    def working_set(self) -> int:
        """Upper limit in bytes of its memory: its input, its output, and the quantisers' temporaries."""
        return self.read + sum(output.nbytes for output in self.outputs) + min(_QUANTISER_TEMPORARIES, 16 * self.read)


@dataclass
class GroupReport:
    """How one tensor group was stored: number of tensors, bytes and rounding error."""

    scheme: str
    tensors: int = 0
    nbytes: int = 0
    squared_error: float = 0.0
    squared_norm: float = 0.0
    max_error: float = 0.0
    rounded: bool = False

    def add(self, recipe: Recipe, result: RecipeResult) -> None:
        """Adds one recipe's result."""
        self.tensors += len(recipe.outputs)
        self.nbytes += sum(output.nbytes for output in recipe.outputs)
        if result.squared_error is not None:
            self.rounded = True
            self.squared_error += result.squared_error
            self.squared_norm += result.squared_norm
            self.max_error = max(self.max_error, result.max_error)

    @property
    def snr_db(self) -> float | None:
        """Signal-to-noise ratio of the stored weights in dB; None if they are exact."""
        if not self.rounded or self.squared_error == 0:
            return None
        return 10 * math.log10(self.squared_norm / self.squared_error) if self.squared_norm else None


class Extent(NamedTuple):
    """Location of an initializer: name of the external data file, offset and length in bytes."""

    file: str
    offset: int
    length: int


def plan_layout(
    recipes: Sequence[Recipe], name: str, limit: int | None = None
) -> tuple[dict[str, Extent], dict[str, int]]:
    """Assigns every initializer its extent; returns extents by initializer and sizes in bytes by file.

    Args:
        recipes: in file order.
        name: of the first file; the second one is ``name.1``.
        limit: largest size of a file in bytes, as on FAT32 (4 GB); ``None``: one file.

    Raises:
        WorkflowError: an initializer is larger than ``limit``.
    """
    extents, sizes, file, end = dict[str, Extent](), {name: 0}, name, 0
    for output in (output for recipe in recipes for output in recipe.outputs):
        alignment = _MAP_ALIGNMENT if output.nbytes >= _MAP_THRESHOLD else _ALIGNMENT
        start = -(-end // alignment) * alignment
        if limit is not None and start + output.nbytes > limit:
            if output.nbytes > limit:
                raise WorkflowError(
                    f"{output.name} alone has {output.nbytes:,} bytes, but the limit for a file is {limit:,}",
                    remedy="Raise --max-file-size; 4GB is enough for gpt-oss.",
                )
            file, start = f"{name}.{len(sizes)}", 0
        extents[output.name] = Extent(file, start, output.nbytes)
        sizes[file] = end = start + output.nbytes
    return extents, sizes
