"""A matrix product with checkpoint weights in any scheme: y = x · Wᵀ + b.

Knows how a [N, K] weight of the checkpoint becomes the operands of MatMul or com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.quantise import Quantised, quantise
from gptoss_convert.schemes import Group, Scheme, require_whole_blocks
from gptoss_convert.weights import Array, Made, TensorSpec, assembled, cast

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
    """As :func:`linear`, the bias by a node of its own: DirectML's MatMulNBits takes none."""
    product = linear(g, x, name, sources, group, scheme, bias=False)
    return g.op("Add", product, g.stacked(f"{name}.bias", [f"{source}.bias" for source in sources], group="biases"))


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
) -> Sequence[ir.Value]:
    """Declares packed codes uint8 [N, K/block, block·bits/8] and scales [N, K/block] of a [N, K] matrix.

    Args:
        g: the builder.
        name: of the weight in the graph.
        sources: the checkpoint's tensors that are the matrix, end to end.
        group: tensor group for the report.
        scheme: int4 or int8.
        span: rows to take; all of them by default.
    """
    rows, columns = stacked_shape(g, sources)
    start, end = span or (0, rows)
    require_whole_blocks(group, scheme, columns)
    blocks, step = columns // scheme.block_size, max(1, _PIECE // columns)

    def piece(at: int) -> Quantised:
        some = g.checkpoint.stacked(sources, at, min(at + step, end))
        return quantise(some, bits=scheme.bits, block=scheme.block_size)

    def place(whole: Array, at: int, part: Array) -> None:
        whole[at - start : at - start + len(part)] = part

    specs = [
        TensorSpec(name, ir.DataType.UINT8, (end - start, blocks, scheme.block_size * scheme.bits // 8)),
        TensorSpec(f"{name}_scales", g.dtype, (end - start, blocks)),
    ]

    def make() -> Made:
        return assembled(specs, range(start, end, step), piece, place)

    return g.weights(group, str(scheme), specs, make)  # read row by row: next to nothing of it is held
