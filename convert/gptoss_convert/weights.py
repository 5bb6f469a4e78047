"""Recipes: which initializers a model has, how each is made of the checkpoint, and where it is to lie.

A recipe says which initializers it makes and how; it holds no data until it is run, so running them one after the other
(writing.py) keeps the working set at that of one or two, whatever the size of the model. Knows nothing of graphs: an
initializer is a name, a dtype and a shape.
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
# Windows maps files at 64 KiB granularity; a large tensor that starts on one can be mapped instead of read.
_MAP_ALIGNMENT, _MAP_FROM = 1 << 16, 1 << 20
_ALIGNMENT = 64
_PIECES = 400 << 20  # temporaries of the quantisers, which work piece by piece
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
class RecipeResult:
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


def cast(stored: Array, dtype: np.dtype[Any] | type[np.generic]) -> RecipeResult:
    """A float tensor in another float type, with the error of rounding if there was any.

    Args:
        stored: as the checkpoint has it.
        dtype: float32 holds bfloat16 and float16 exactly; anything narrower may round.
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
    """A matrix whose rows are brought to a common size before they are cast, with the error of rounding.

    Args:
        stored: float [N, K], as the checkpoint has it.
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
    """Codes and scales of a matrix that is quantised part by part, several parts at a time.

    Args:
        outputs: codes and scales as they are to be stored.
        items: what says which part, in order.
        make: quantises a part; called in other threads.
        place: puts what is one part's, codes [N, K/block, bytes] or scales [N, K/block], where it belongs in the whole:
            (whole, item, part).
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
    """How to make one or more initializers from the checkpoint.

    Attributes:
        outputs: what it makes, in the order of the arrays.
        make: runs it.
        group: tensor group for the report, such as "experts".
        scheme: how the group is stored, for the report.
        read: bytes of the checkpoint that it is made of.
    """

    outputs: tuple[TensorSpec, ...]
    make: Callable[[], RecipeResult]
    group: str
    scheme: str
    read: int = 0

    @property
    def working_set(self) -> int:
        """Bytes that making it takes at most: what is read, what is made, and pieces on the way between them."""
        return self.read + sum(output.nbytes for output in self.outputs) + min(_PIECES, 16 * self.read)


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

    def add(self, recipe: Recipe, made: RecipeResult) -> None:
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


class Extent(NamedTuple):
    """Where an initializer lies: the external data file's name, and offset and length in bytes."""

    file: str
    offset: int
    length: int


def plan_layout(
    recipes: Sequence[Recipe], name: str, limit: int | None = None
) -> tuple[dict[str, Extent], dict[str, int]]:
    """Where every initializer goes, and the size of every external data file in bytes.

    Args:
        recipes: in file order.
        name: of the first file; a second one is called ``name.1``.
        limit: bytes that a file may have, for file systems that have one (FAT32: 4 GB); ``None``: one file.

    Raises:
        WorkflowError: an initializer is larger than ``limit``.
    """
    extents, sizes, file, end = dict[str, Extent](), {name: 0}, name, 0
    for output in (output for recipe in recipes for output in recipe.outputs):
        alignment = _MAP_ALIGNMENT if output.nbytes >= _MAP_FROM else _ALIGNMENT
        start = -(-end // alignment) * alignment
        if limit is not None and start + output.nbytes > limit:
            if output.nbytes > limit:
                raise WorkflowError(
                    f"{output.name} alone has {output.nbytes:,} bytes, and a file may have {limit:,}",
                    remedy="Allow larger files; 4 GB suffice for gpt-oss.",
                )
            file, start = f"{name}.{len(sizes)}", 0
        extents[output.name] = Extent(file, start, output.nbytes)
        sizes[file] = end = start + output.nbytes
    return extents, sizes
