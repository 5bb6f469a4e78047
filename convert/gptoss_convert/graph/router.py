"""Expert logits of every token."""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.linear import linear


def router_logits(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """[batch, sequence, hidden] to [batch · sequence, experts]."""
    module = f"model.layers.{layer}.mlp.router"
    logits = linear(g, x, module, [module], "router", g.quantisation.router)
    return g.op("Reshape", logits, g.ints(-1, g.config.num_local_experts))
