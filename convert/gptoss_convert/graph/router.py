"""The router: how well each expert suits each token, as logits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.linear import linear
from gptoss_convert.graph.precision import FLOAT32, to_graph_type
from gptoss_convert.weights import RecipeResult, TensorSpec


def router_logits(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """float32 [batch, sequence, hidden] to logits [batch · sequence, experts], computed in the graph's float type."""
    module = f"model.layers.{layer}.mlp.router"
    logits = linear(g, to_graph_type(g, x), module, [module], "router", g.quantisation.router)
    return g.op("Reshape", logits, g.ints(-1, g.config.num_local_experts))


def router_logits_float32(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """As :func:`router_logits`, computed in float32 and rounded to the graph's float type once, at the end.

    A token's largest logit is subtracted from all of its logits before rounding. This changes neither the choice of
    experts nor their weights. float16 then rounds distances from the largest logit, which are small where it matters.
    """
    logits = router_float32(g, layer, x)
    if g.dtype != FLOAT32:
        logits = g.op("Sub", logits, g.op("ReduceMax", logits, g.ints(-1), keepdims=1))
    logits = to_graph_type(g, logits)
    return g.op("Reshape", logits, g.ints(-1, g.config.num_local_experts))


def router_float32(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """float32 [batch, sequence, hidden] to logits float32 [batch, sequence, experts], in a graph of any float type.

    Near ties decide between experts, so float16's rounding would change the choice; the weight is small.
    """
    module, checkpoint = f"model.layers.{layer}.mlp.router", g.checkpoint
    experts, hidden = checkpoint.tensors[f"{module}.weight"].shape
    specs = [
        TensorSpec(f"{module}.weight", FLOAT32, (hidden, experts)),
        TensorSpec(f"{module}.bias", FLOAT32, (experts,)),
    ]

    def make() -> RecipeResult:
        weight, bias = checkpoint.array(f"{module}.weight"), checkpoint.array(f"{module}.bias")
        return RecipeResult([weight.T.astype(np.float32), bias.astype(np.float32)])

    weight, bias = g.weights("router", "float32", specs, make)
    return g.op("Add", g.op("MatMul", x, weight), bias)
