"""Where a float16 graph computes in float32, and how values are converted between the two.

The residual stream, what is added to it, and the norms are float32 in every graph: gpt-oss's own activations exceed
float16's 65,504, and DirectML's RMSNorm on float16 squares in float16, which overflows from an RMS of 256 on. Matrix
products, attention and the cache have the graph's float type. Their inputs are normed, and their outputs are scaled by
row (gptoss_convert.row_scaling) before they are added to the stream. In a float32 graph nothing here emits a node.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.weights import TensorSpec

FLOAT32 = ir.DataType.FLOAT


def to_float32(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """Converts a value of the graph's float type to float32."""
    return x if g.dtype == FLOAT32 else g.op("Cast", x, to=FLOAT32)


def to_graph_type(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """Converts a float32 value to the graph's float type."""
    return x if g.dtype == FLOAT32 else g.op("Cast", x, to=g.dtype)


def stores_rows_unscaled(g: GraphBuilder) -> bool:
    """Whether rows are stored as they are (float32 graphs), and not scaled to a common size (float16 graphs)."""
    return g.dtype == FLOAT32


def factors_spec(name: str, rows: int) -> TensorSpec:
    """Describes the initializer of a weight's row factors, float32 [rows]."""
    return TensorSpec(f"{name}_factors", FLOAT32, (rows,))


def scale_product(g: GraphBuilder, product: ir.Value, factors: ir.Value) -> ir.Value:
    """Converts a product of scaled rows to float32 and undoes the scaling.

    Args:
        g: the builder.
        product: [..., N] in the graph's float type.
        factors: float32 [N], powers of two.

    Returns:
        float32 [..., N].
    """
    return g.op("Mul", to_float32(g, product), factors)


def constant32(g: GraphBuilder, value: float) -> ir.Value:
    """A float32 constant."""
    return g.constant(value, np.float32)
