"""The mixture of experts by com.microsoft.MoE in float: exact, four to eight times the bytes.

For measuring what a quantisation costs, and for fine-tunes whose experts were never MXFP4.
"""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.experts import SWIGLU, expert_values, projection_shape
from gptoss_convert.graph.router import router_logits
from gptoss_convert.weights import TensorSpec, cast


def moe_float(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Experts in the graph's float type, [batch, sequence, hidden] to the same."""
    operands = [*_projection(g, layer, "gate_up_proj"), *_projection(g, layer, "down_proj")]
    return g.op(
        "MoE",
        *(x, router_logits(g, layer, x), *operands),
        domain=MICROSOFT,
        k=g.config.num_experts_per_tok,
        swiglu_limit=g.config.swiglu_limit,
        **SWIGLU,
    )


def _projection(g: GraphBuilder, layer: int, name: str) -> list[ir.Value]:
    module, checkpoint = f"model.layers.{layer}.mlp.experts.{name}", g.checkpoint
    spec = TensorSpec(f"{module}.weight", g.dtype, projection_shape(g.config, name))
    weight = g.weights(
        "experts", g.dtype.name.lower(), [spec], lambda: cast(expert_values(checkpoint, module), g.numpy_dtype)
    )[0]
    return [weight, g.copied(f"{module}.bias", f"{module}_bias", group="biases")]
