"""Expert logits of every token."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.linear import linear
from gptoss_convert.graph.precision import FLOAT32, to_graph_type
from gptoss_convert.weights import RecipeResult, TensorSpec


def router_logits(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """float32 [batch, sequence, hidden] to [batch · sequence, experts] in the graph's float type."""
    module = f"model.layers.{layer}.mlp.router"
    logits = linear(g, to_graph_type(g, x), module, [module], "router", g.quantisation.router)
    return g.op("Reshape", logits, g.ints(-1, g.config.num_local_experts))


def router_logits_float32(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """As :func:`router_logits`, of :func:`router_float32`: rounded to the graph's type once, at the end.

    Less each token's largest logit, which changes neither who is chosen nor with what weight: what float16 rounds is
    then how far the others are behind, and not where all of them are.
    """
    logits = router_float32(g, layer, x)
    if g.dtype != FLOAT32:
        logits = g.op("Sub", logits, g.op("ReduceMax", logits, g.ints(-1), keepdims=1))
    logits = to_graph_type(g, logits)
    return g.op("Reshape", logits, g.ints(-1, g.config.num_local_experts))


def router_float32(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """float32 [batch, sequence, hidden] to float32 [batch, sequence, experts], whatever the graph's type.

    Near ties decide between experts, and the weights are few: float16 would lose more here than it saves.
    """
    module, checkpoint = f"model.layers.{layer}.mlp.router", g.checkpoint
    stored = checkpoint.tensors[f"{module}.weight"]
    specs = [
        TensorSpec(f"{module}.weight", FLOAT32, (stored.shape[1], stored.shape[0])),
        TensorSpec(f"{module}.bias", FLOAT32, (stored.shape[0],)),
    ]

    def make() -> RecipeResult:
        weight, bias = checkpoint.array(f"{module}.weight"), checkpoint.array(f"{module}.bias")
        return RecipeResult([weight.T.astype(np.float32), bias.astype(np.float32)])

    weight, bias = g.weights("router", "float32", specs, make)
    return g.op("Add", g.op("MatMul", x, weight), bias)
