"""A matrix product with checkpoint weights in any scheme: y = x · Wᵀ + b.

Knows how a [N, K] weight of the checkpoint becomes the operands of MatMul or com.microsoft.MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.quantise import quantise
from gptoss_convert.schemes import Group, Scheme, require_whole_blocks
from gptoss_convert.weights import Made, TensorSpec, cast

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
    tensors = [g.checkpoint.tensors[f"{source}.weight"] for source in sources]
    rows, columns = sum(t.shape[0] for t in tensors), tensors[0].shape[1]

    def load() -> NDArray[Any]:
        return g.checkpoint.stacked([f"{source}.weight" for source in sources])

    offset = g.stacked(f"{name}.bias", [f"{source}.bias" for source in sources], group="biases") if bias else None
    if scheme.is_integer:
        packed, scales = integer_weights(g, f"{name}.weight", (rows, columns), load, group, scheme)
        operands = [x, packed, scales] + ([None, None, offset] if offset else [])
        attributes = {"K": columns, "N": rows, "bits": scheme.bits, "block_size": scheme.block_size}
        return g.op("MatMulNBits", *operands, domain=MICROSOFT, accuracy_level=scheme.accuracy_level, **attributes)
    onnx_type, numpy_type = FLOAT_TYPES[scheme.type]
    spec = TensorSpec(f"{name}.weight", onnx_type, (columns, rows))
    weight = g.weights(group, str(scheme), [spec], lambda: cast(load().T, numpy_type))[0]
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


def integer_weights(
    g: GraphBuilder,
    name: str,
    shape: tuple[int, int],
    load: Callable[[], NDArray[Any]],
    group: Group,
    scheme: Scheme,
) -> Sequence[ir.Value]:
    """Declares packed codes uint8 [N, K/block, block·bits/8] and scales [N, K/block] of a [N, K] matrix."""
    rows, columns = shape
    require_whole_blocks(group, scheme, columns)
    blocks = columns // scheme.block_size

    def make() -> Made:
        q = quantise(load(), bits=scheme.bits, block=scheme.block_size)
        return Made([q.packed, q.scales.astype(g.numpy_dtype)], q.squared_error, q.squared_norm, q.max_error)

    codes = TensorSpec(name, ir.DataType.UINT8, (rows, blocks, scheme.block_size * scheme.bits // 8))
    return g.weights(group, str(scheme), [codes, TensorSpec(f"{name}_scales", g.dtype, (rows, blocks))], make)
