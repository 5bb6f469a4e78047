"""A matrix product with checkpoint weights in any scheme: y = x · Wᵀ + b.

Knows how a [N, K] weight of the checkpoint becomes the operands of MatMul or com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir

from gptoss_convert import unit_rows
from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.precision import FLOAT32, factors_spec, scale_product, to_float32
from gptoss_convert.quantise import Quantised, quantise
from gptoss_convert.schemes import Group, Scheme, require_whole_blocks
from gptoss_convert.weights import Array, Made, TensorSpec, assembled, cast, cast_rows

_PIECE = 1 << 20  # weights that a thread quantises at a time
FLOAT_TYPES = {
    "float32": (ir.DataType.FLOAT, np.float32),
    "float16": (ir.DataType.FLOAT16, np.float16),
    "bfloat16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
}


def linear(
    g: GraphBuilder, x: ir.Value, name: str, sources: Sequence[str], group: Group, scheme: Scheme, *, bias: bool = True
) -> ir.Value:
    """Several weights of the checkpoint side by side, as one matrix product.

    Args:
        g: the builder.
        x: [..., K].
        name: of the weight in the graph.
        sources: checkpoint modules (without ``.weight``), [N_i, K] each, stacked along N.
        group: tensor group for the report.
        scheme: how the weight is stored.
        bias: add the modules' biases.

    Returns:
        [..., ΣN_i].
    """
    weights = [f"{source}.weight" for source in sources]
    rows, columns = stacked_shape(g, weights)
    offset = g.stacked(f"{name}.bias", [f"{source}.bias" for source in sources], group="biases") if bias else None
    if scheme.is_integer:
        packed, scales = integer_weights(g, f"{name}.weight", weights, group, scheme)
        operands = [x, packed, scales] + ([None, None, offset] if offset else [])
        attributes = {"K": columns, "N": rows, "bits": scheme.bits, "block_size": scheme.block_size}
        return g.op("MatMulNBits", *operands, domain=MICROSOFT, accuracy_level=scheme.accuracy_level, **attributes)
    onnx_type, numpy_type = FLOAT_TYPES[scheme.type]
    spec = TensorSpec(f"{name}.weight", onnx_type, (columns, rows))

    def make() -> Made:
        return cast(g.checkpoint.stacked(weights).T, numpy_type)

    weight = g.weights(group, str(scheme), [spec], make, weights)[0]
    if onnx_type != g.dtype:
        weight = g.op("Cast", weight, to=g.dtype)
    product = g.op("MatMul", x, weight)
    return g.op("Add", product, offset) if offset else product


def linear_then_bias(
    g: GraphBuilder, x: ir.Value, name: str, sources: Sequence[str], group: Group, scheme: Scheme
) -> ir.Value:
    """As :func:`linear`, the bias by a node of its own, DirectML's MatMulNBits takes none, and float32 from there."""
    product = to_float32(g, g.watch("qkv_product", linear(g, x, name, sources, group, scheme, bias=False)))
    biases = [f"{source}.bias" for source in sources]
    return g.op("Add", product, g.stacked(f"{name}.bias", biases, group="biases", dtype=FLOAT32))


def linear_into_stream(g: GraphBuilder, x: ir.Value, name: str, source: str, group: Group, scheme: Scheme) -> ir.Value:
    """One weight's product in a float16 graph, as float32 that is added to the stream.

    Its rows are stored at unit length, so that the product is no larger than ``x`` is long, however large what it
    stands for; :func:`gptoss_convert.graph.precision.scale_product` gives it its size back.

    Args:
        g: the builder.
        x: [..., K] in the graph's float type.
        name: of the weight in the graph.
        source: the checkpoint's module, [N, K].
        group: tensor group for the report.
        scheme: how the weight is stored.

    Returns:
        float32 [..., N].
    """
    rows, columns = stacked_shape(g, [f"{source}.weight"])
    if scheme.is_integer:
        packed, scales, factors = integer_weights(
            g, f"{name}.weight", [f"{source}.weight"], group, scheme, unit_length=True
        )
        attributes = {"K": columns, "N": rows, "bits": scheme.bits, "block_size": scheme.block_size}
        product = g.op("MatMulNBits", x, packed, scales, domain=MICROSOFT, **attributes)
    else:
        weight, factors = _float_columns(g, name, f"{source}.weight", group, scheme)
        product = g.op("MatMul", x, weight)
    total = scale_product(g, g.watch("product", product), factors)
    return g.op("Add", total, g.copied(f"{name}.bias", f"{source}.bias", group="biases", dtype=FLOAT32))


def _float_columns(g: GraphBuilder, name: str, source: str, group: Group, scheme: Scheme) -> tuple[ir.Value, ir.Value]:
    """A [N, K] weight as MatMul's [K, N] in the graph's float type, every output at unit length, and its factors."""
    rows, columns = stacked_shape(g, [source])
    onnx_type, numpy_type = FLOAT_TYPES[scheme.type]
    specs = [TensorSpec(f"{name}.weight", onnx_type, (columns, rows)), factors_spec(f"{name}.weight", rows)]

    def make() -> Made:
        stored = g.checkpoint.array(source)
        exponents = unit_rows.exponents_of_lengths(stored)
        made = cast_rows(stored, exponents, numpy_type)
        return replace(made, arrays=[made.arrays[0].T, unit_rows.factors(exponents)])

    weight, factors = g.weights(group, str(scheme), specs, make, [source])
    return (weight if onnx_type == g.dtype else g.op("Cast", weight, to=g.dtype)), factors


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
    unit_length: bool = False,
) -> Sequence[ir.Value]:
    """Declares packed codes uint8 [N, K/block, block·bits/8] and scales [N, K/block] of a [N, K] matrix.

    Args:
        g: the builder.
        name: of the weight in the graph.
        sources: the checkpoint's tensors that are the matrix, end to end.
        group: tensor group for the report.
        scheme: int4 or int8.
        span: rows to take; all of them by default.
        scales: their float type; the graph's by default.
        unit_length: bring rows to unit length, and declare their factors as a third weight, float32 [N].
    """
    rows, columns = stacked_shape(g, sources)
    start, end = span or (0, rows)
    require_whole_blocks(group, scheme, columns)
    blocks, step = columns // scheme.block_size, max(1, _PIECE // columns)
    exponents = np.zeros(end - start, np.int32)

    def piece(at: int) -> Quantised:
        some = g.checkpoint.stacked(sources, at, min(at + step, end))
        made = quantise(some, bits=scheme.bits, block=scheme.block_size)
        if not unit_length:
            return made
        mine = exponents[at - start : at - start + len(some)]
        mine[:] = unit_rows.exponents_of_lengths(some)
        return unit_rows.scale_quantised(made, mine)

    def place(whole: Array, at: int, part: Array) -> None:
        whole[at - start : at - start + len(part)] = part

    specs = [
        TensorSpec(name, ir.DataType.UINT8, (end - start, blocks, scheme.block_size * scheme.bits // 8)),
        TensorSpec(f"{name}_scales", scales or g.dtype, (end - start, blocks)),
    ]

    def make() -> Made:
        made = assembled(specs[:2], range(start, end, step), piece, place)
        return replace(made, arrays=[*made.arrays, unit_rows.factors(exponents)]) if unit_length else made

    if unit_length:
        specs.append(factors_spec(name, end - start))
    return g.weights(group, str(scheme), specs, make)  # read row by row: next to nothing of it is held
