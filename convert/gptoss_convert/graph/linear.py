"""A matrix product with checkpoint weights in any scheme: y = x · Wᵀ + b.

Knows how a [N, K] weight of the checkpoint becomes the operands of MatMul or com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.precision import FLOAT32, factors_spec, scale_product
from gptoss_convert.quantise import QuantisedMatrix, quantise
from gptoss_convert.row_scaling import Exponents, compute_factors, compute_length_exponents, scale_quantised
from gptoss_convert.schemes import Group, Scheme, require_whole_blocks
from gptoss_convert.weights import Array, RecipeResult, TensorSpec, cast, cast_rows, quantise_parts

RowExponents = Callable[[Array, int, int], Exponents]  # of rows [start, end) of a matrix: (rows, start, end)
Gains = Callable[[], NDArray[np.float32]]
_WEIGHTS_PER_TASK = 1 << 20  # weights that a thread quantises at a time
FLOAT_TYPES = {
    "float32": (ir.DataType.FLOAT, np.float32),
    "float16": (ir.DataType.FLOAT16, np.float16),
    "bfloat16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
}


def linear(
    g: GraphBuilder,
    x: ir.Value,
    name: str,
    sources: Sequence[str],
    group: Group,
    scheme: Scheme,
    *,
    bias: bool = True,
    exponents: Callable[[], Exponents] | None = None,
) -> ir.Value:
    """One matrix product of several checkpoint weights side by side, with their biases.

    Args:
        g: the builder.
        x: [..., K].
        name: of the weight in the graph.
        sources: checkpoint modules (without ``.weight``), [N_i, K] each, stacked along N.
        group: tensor group for the report.
        scheme: how the weight is stored.
        bias: add the modules' biases.
        exponents: row n of weight and bias is stored times 2^-exponents[n]; int32 [ΣN_i].

    Returns:
        [..., ΣN_i].
    """
    offset = _bias(g, name, sources, g.dtype, exponents and (lambda: compute_factors(-exponents()))) if bias else None
    rows: RowExponents | None = exponents and (lambda _, start, end: exponents()[start:end])
    fused = offset if scheme.is_integer else None
    product, *_ = _product(g, x, name, sources, group, scheme, exponents=rows, bias=fused)
    return product if offset is fused else g.op("Add", product, offset)


def scaled_linear(
    g: GraphBuilder,
    x: ir.Value,
    name: str,
    sources: Sequence[str],
    group: Group,
    scheme: Scheme,
    *,
    gains: Gains,
    bias_gains: Gains | None = None,
) -> ir.Value:
    """As :func:`linear`, for weights of any magnitude: y = gain · (x · Wᵀ) + b, in float32 from the product on.

    Rows are stored at unit length, so that the product, in the graph's float type, is no larger than the length of
    ``x``. A multiplication in float32 restores the magnitude and applies the gains. The bias is a node of its own:
    DirectML's MatMulNBits takes none.

    Args:
        g: the builder.
        x: [..., K] in the graph's float type.
        name: of the weight in the graph.
        sources: checkpoint modules (without ``.weight``), [N_i, K] each, stacked along N.
        group: tensor group for the report.
        scheme: how the weight is stored.
        gains: factors of the product's rows, float32 [ΣN_i].
        bias_gains: factors of the biases, float32 [ΣN_i]; 1 by default.

    Returns:
        float32 [..., ΣN_i].
    """
    product, scaling = _product(g, x, name, sources, group, scheme, exponents=_unit_length, gains=gains)
    total = scale_product(g, g.watch(f"{name.rsplit('.', 1)[-1]}_product", product), scaling)
    return g.op("Add", total, _bias(g, name, sources, FLOAT32, bias_gains))


def _product(
    g: GraphBuilder,
    x: ir.Value,
    name: str,
    sources: Sequence[str],
    group: Group,
    scheme: Scheme,
    *,
    bias: ir.Value | None = None,
    exponents: RowExponents | None = None,
    gains: Gains | None = None,
) -> Sequence[ir.Value]:
    """The product, and the factors of its rows where gains are given; ``bias`` is part of an integer product's node."""
    weights = [f"{source}.weight" for source in sources]
    if not scheme.is_integer:
        weight, *scaling = _float_weights(g, name, weights, group, scheme, exponents=exponents, gains=gains)
        return [g.op("MatMul", x, weight), *scaling]
    packed, scales, *scaling = integer_weights(
        g, f"{name}.weight", weights, group, scheme, exponents=exponents, gains=gains
    )
    rows, columns = stacked_shape(g, weights)
    operands = [x, packed, scales] + ([None, None, bias] if bias else [])
    attributes = {"K": columns, "N": rows, "bits": scheme.bits, "block_size": scheme.block_size}
    product = g.op("MatMulNBits", *operands, domain=MICROSOFT, accuracy_level=scheme.accuracy_level, **attributes)
    return [product, *scaling]


def _unit_length(rows: Array, start: int, end: int) -> Exponents:
    return compute_length_exponents(rows)


def _bias(g: GraphBuilder, name: str, sources: Sequence[str], dtype: ir.DataType, gains: Gains | None) -> ir.Value:
    """Declares modules' biases end to end, multiplied by gains."""
    biases = [f"{source}.bias" for source in sources]
    if gains is None:
        return g.stack_tensors(f"{name}.bias", biases, group="biases", dtype=dtype)
    spec = TensorSpec(f"{name}.bias", dtype, (sum(g.checkpoint.tensors[bias].shape[0] for bias in biases),))

    def make() -> RecipeResult:
        return cast(g.checkpoint.concatenate(biases).astype(np.float32) * gains(), dtype.numpy())

    return g.weights("biases", dtype.name.lower(), [spec], make, biases)[0]


def _float_weights(
    g: GraphBuilder,
    name: str,
    sources: Sequence[str],
    group: Group,
    scheme: Scheme,
    *,
    exponents: RowExponents | None = None,
    gains: Gains | None = None,
) -> Sequence[ir.Value]:
    """Declares a [N, K] matrix as MatMul's [K, N] in a float type; arguments as for :func:`integer_weights`."""
    rows, columns = stacked_shape(g, sources)
    onnx_type, numpy_type = FLOAT_TYPES[scheme.type]
    specs = [TensorSpec(f"{name}.weight", onnx_type, (columns, rows))]

    def make() -> RecipeResult:
        stored = g.checkpoint.concatenate(sources)
        if exponents is None:
            return cast(stored.T, numpy_type)
        by_row = exponents(stored, 0, rows)
        made = cast_rows(stored, by_row, numpy_type)
        scaling = [] if gains is None else [compute_factors(by_row) * gains()]
        return replace(made, arrays=[made.arrays[0].T, *scaling])

    if gains is not None:
        specs.append(factors_spec(f"{name}.weight", rows))
    weight, *scaling = g.weights(group, str(scheme), specs, make, sources)
    return [weight if onnx_type == g.dtype else g.op("Cast", weight, to=g.dtype), *scaling]


def stacked_shape(g: GraphBuilder, names: Sequence[str]) -> tuple[int, int]:
    """[ΣN_i, K] of several of the checkpoint's matrices end to end."""
    shapes = [g.checkpoint.tensors[name].shape for name in names]
    return sum(shape[0] for shape in shapes), shapes[0][1]


def integer_weights(
    g: GraphBuilder,
    name: str,
    sources: Sequence[str],
    group: Group,
    scheme: Scheme,
    span: tuple[int, int] | None = None,
    *,
    scales: ir.DataType | None = None,
    exponents: RowExponents | None = None,
    gains: Gains | None = None,
) -> Sequence[ir.Value]:
    """Declares packed codes uint8 [N, K/block, block·bits/8] and scales [N, K/block] of a [N, K] matrix.

    Args:
        g: the builder.
        name: of the weight in the graph.
        sources: names of the checkpoint's tensors that make up the matrix, end to end.
        group: tensor group for the report.
        scheme: int4 or int8.
        span: rows to take, [start, end); all of them by default.
        scales: float type of the scales; the graph's by default.
        exponents: row n is stored times 2^-exponents[n].
        gains: also declares a third weight, the factors that undo ``exponents`` times these gains; float32 [N].
    """
    rows, columns = stacked_shape(g, sources)
    start, end = span or (0, rows)
    require_whole_blocks(group, scheme, columns)
    blocks, step = columns // scheme.block_size, max(1, _WEIGHTS_PER_TASK // columns)
    by_row = np.zeros(end - start, np.int32)

    def quantise_rows(at: int) -> QuantisedMatrix:
        stored = g.checkpoint.concatenate(sources, at, min(at + step, end))
        made = quantise(stored, bits=scheme.bits, block=scheme.block_size)
        if exponents is None:
            return made
        row_exponents = by_row[at - start : at - start + len(stored)]
        row_exponents[:] = exponents(stored, at, at + len(stored))
        return scale_quantised(made, row_exponents)

    def place_rows(whole: Array, at: int, part: Array) -> None:
        whole[at - start : at - start + len(part)] = part

    specs = [
        TensorSpec(name, ir.DataType.UINT8, (end - start, blocks, scheme.block_size * scheme.bits // 8)),
        TensorSpec(f"{name}_scales", scales or g.dtype, (end - start, blocks)),
    ]

    def make() -> RecipeResult:
        made = quantise_parts(specs[:2], range(start, end, step), quantise_rows, place_rows)
        return made if gains is None else replace(made, arrays=[*made.arrays, compute_factors(by_row) * gains()])

    if gains is not None:
        specs.append(factors_spec(name, end - start))
    return g.weights(group, str(scheme), specs, make)  # rows are read a few at a time, so almost nothing is held
