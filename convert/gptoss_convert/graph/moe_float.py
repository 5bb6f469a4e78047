"""The mixture of experts by com.microsoft.MoE in float: exact, four to eight times the bytes of MXFP4.

It measures what a quantisation costs, and serves fine-tunes whose experts were never MXFP4.
"""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.experts import (
    DOWN,
    GATE_UP,
    ProjectionName,
    moe_node,
    projection_module,
    projection_shape,
    projection_tensors,
    read_weights,
)
from gptoss_convert.weights import RecipeResult, TensorSpec, cast


def moe_float(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Experts in the graph's float type, float32 [batch, sequence, hidden] to the same."""
    gate_up_weight, gate_up_bias = _declare(g, layer, GATE_UP)
    down_weight, down_bias = _declare(g, layer, DOWN)
    return moe_node(g, "MoE", layer, x, [gate_up_weight, gate_up_bias, down_weight, down_bias])


def _declare(g: GraphBuilder, layer: int, name: ProjectionName) -> tuple[ir.Value, ir.Value]:
    """Declares weight [E, N, K] and bias [E, N] of one projection, in the graph's float type."""
    module, checkpoint = projection_module(layer, name), g.checkpoint
    spec = TensorSpec(f"{module}.weight", g.dtype, projection_shape(g.config, name))

    def make() -> RecipeResult:
        return cast(read_weights(checkpoint, module), g.numpy_dtype)

    reads = projection_tensors(checkpoint, module)
    weight = g.weights("experts", g.dtype.name.lower(), [spec], make, reads)[0]
    return weight, g.copy_tensor(f"{module}.bias", f"{module}_bias", group="biases")
