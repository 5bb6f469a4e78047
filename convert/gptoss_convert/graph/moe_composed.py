"""The mixture of experts composed of plain operators, three designs over one layout of weights (experts_matmul.py).

    dense    every expert, those not chosen weighted 0: two matrix products a layer for any number of tokens
    slots    the chosen experts' blocks gathered, then the same two products: one token only
    split    the first token by slots and the others, if there are any, dense: one graph that decodes by slots and
             prefills dense. With one token the dense half is an empty tensor, which DirectML does not compute

No control flow, no shapes on the CPU. docs/directml.md compares what they read and write.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.experts_matmul import Experts, all_experts, mixed
from gptoss_convert.graph.router import router_float32
from gptoss_convert.weights import Made, TensorSpec

_TO_THE_END = (1 << 63) - 1


@dataclass(frozen=True)
class Routes:
    """Where tokens go: chosen experts int64 and their weights, both [1, sequence, k]."""

    chosen: ir.Value
    weights: ir.Value


def moe_dense(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """All experts for every token, [1, sequence, hidden] to the same."""
    return _dense(g, x, _routes(g, layer, x), all_experts(g, layer))


def moe_slots(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """The chosen experts for one token, [1, 1, hidden] to the same."""
    return _slots(g, x, _routes(g, layer, x), all_experts(g, layer))


def moe_split(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """The chosen experts for the first token and all for the others, [1, sequence, hidden] to the same."""
    routes, experts = _routes(g, layer, x), all_experts(g, layer)
    first = _slots(g, _tokens(g, x, 0, 1), Routes(*(_tokens(g, part, 0, 1) for part in _parts(routes))), experts)
    others = Routes(*(_tokens(g, part, 1, _TO_THE_END) for part in _parts(routes)))
    return g.op("Concat", first, _dense(g, _tokens(g, x, 1, _TO_THE_END), others, experts), axis=1)


def _parts(routes: Routes) -> tuple[ir.Value, ir.Value]:
    return routes.chosen, routes.weights


def _tokens(g: GraphBuilder, x: ir.Value, start: int, end: int) -> ir.Value:
    return g.op("Slice", x, g.ints(start), g.ints(end), g.ints(1))


def _routes(g: GraphBuilder, layer: int, x: ir.Value) -> Routes:
    """The k most likely experts of each token, weighted by a softmax over those alone."""
    top, chosen = g.ops("TopK", router_float32(g, layer, x), g.ints(g.config.num_experts_per_tok), outputs=2, axis=-1)
    weights = g.op("Softmax", top, axis=-1)
    return Routes(chosen, weights if g.dtype == ir.DataType.FLOAT else g.op("Cast", weights, to=g.dtype))


def _dense(g: GraphBuilder, x: ir.Value, routes: Routes, experts: Experts) -> ir.Value:
    # One-hot by comparison: ScatterElements is registered for an older version than this opset's.
    hit = g.op("Equal", g.op("Unsqueeze", routes.chosen, g.ints(3)), _numbers(g, experts.count))
    spread = g.op("Mul", g.op("Cast", hit, to=g.dtype), g.op("Unsqueeze", routes.weights, g.ints(3)))
    return mixed(g, x, g.op("ReduceSum", spread, g.ints(2), keepdims=0), experts)


def _slots(g: GraphBuilder, x: ir.Value, routes: Routes, experts: Experts) -> ir.Value:
    config, scheme = g.config, g.quantisation.experts
    chosen = g.op("Reshape", routes.chosen, g.ints(-1))
    rows = _blocks(g, chosen, 2 * config.intermediate_size)
    columns = _blocks(g, chosen, config.intermediate_size // scheme.block_size)
    codes, scales, bias = experts.down
    up_codes, up_scales, up_bias = (g.op("Gather", part, rows, axis=0) for part in experts.up)
    gathered = Experts(
        config.num_experts_per_tok,
        (up_codes, up_scales, up_bias),
        (
            g.op("Gather", codes, columns, axis=1),
            g.op("Gather", scales, columns, axis=1),
            g.op("Gather", bias, chosen, axis=0),
        ),
    )
    return mixed(g, x, routes.weights, gathered)


def _blocks(g: GraphBuilder, chosen: ir.Value, size: int) -> ir.Value:
    """Indices of the chosen blocks of ``size`` rows each, int64 [k · size]."""
    start = g.op("Mul", g.op("Unsqueeze", chosen, g.ints(1)), g.ints(size))
    return g.op("Reshape", g.op("Add", start, _numbers(g, size)), g.ints(-1))


def _numbers(g: GraphBuilder, count: int) -> ir.Value:
    """0, 1, … count - 1, int64; one initializer for all layers."""
    name = f"numbers_{count}"
    spec = TensorSpec(name, ir.DataType.INT64, (count,))
    return g.shared(name) or g.weights("indices", "int64", [spec], lambda: Made([np.arange(count)]))[0]
