"""The mixture of experts by com.microsoft.MoE in float: exact, four to eight times the bytes.

For measuring what a quantisation costs, and for fine-tunes whose experts were never MXFP4.
"""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.experts import expert_values, moe_node, projection_shape, projection_tensors
from gptoss_convert.weights import RecipeResult, TensorSpec, cast


def moe_float(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Experts in the graph's float type, [batch, sequence, hidden] to the same."""
    return moe_node(g, "MoE", layer, x, [*_projection(g, layer, "gate_up_proj"), *_projection(g, layer, "down_proj")])


def _projection(g: GraphBuilder, layer: int, name: str) -> list[ir.Value]:
    module, checkpoint = f"model.layers.{layer}.mlp.experts.{name}", g.checkpoint
    spec = TensorSpec(f"{module}.weight", g.dtype, projection_shape(g.config, name))

    def make() -> RecipeResult:
        return cast(expert_values(checkpoint, module), g.numpy_dtype)

    reads = projection_tensors(checkpoint, module)
    weight = g.weights("experts", g.dtype.name.lower(), [spec], make, reads)[0]
    return [weight, g.copied(f"{module}.bias", f"{module}_bias", group="biases")]
