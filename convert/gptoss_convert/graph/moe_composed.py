"""The mixture of experts composed of plain operators, three designs over one layout of weights (experts_matmul.py).

    dense    every expert, those not chosen weighted 0: two matrix products a layer for any number of tokens
    slots    the chosen experts' blocks gathered, then the same two products: one token only
    split    the first token by slots; the others, if there are any, dense, some experts at a time. One graph that
             decodes by slots and prefills dense: with one token the dense half is empty tensors, which DirectML does
             not compute, nor what they are gathered from

No control flow, no shapes on the CPU. docs/directml.md compares what they read and write.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.graph.experts_matmul import Experts, all_experts, mixed
from gptoss_convert.graph.pieces import Limit
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


def moe_split(limit: Limit) -> Layer:
    """The chosen experts for the first token and all for the others, [1, sequence, hidden] to the same.

    Args:
        limit: of a dequantised weight; says how many experts are taken at a time.
    """

    def moe(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
        routes, experts = _routes(g, layer, x), all_experts(g, layer)
        first = _slots(g, _tokens(g, x, 0, 1), Routes(*(_tokens(g, part, 0, 1) for part in _parts(routes))), experts)
        others = Routes(*(_tokens(g, part, 1, _TO_THE_END) for part in _parts(routes)))
        rest = _dense_in_pieces(g, _tokens(g, x, 1, _TO_THE_END), others, experts, limit)
        return g.op("Concat", first, rest, axis=1)

    return moe


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
    return mixed(g, x, _spread(g, routes), experts)


def _dense_in_pieces(g: GraphBuilder, x: ir.Value, routes: Routes, experts: Experts, limit: Limit) -> ir.Value:
    config = g.config
    nbytes = experts.count * 2 * config.intermediate_size * config.hidden_size * int(g.dtype.itemsize)
    spans = limit.spans(experts.count, nbytes)
    spread = _spread(g, routes)
    # A zero for each token up to one: numbers added to it are as many as they were, or none if there is no token. It
    # also keeps them from being constants, whose gathered experts onnxruntime would compute, and store, on loading.
    zero = g.op("Mul", _tokens(g, g.op("Reshape", routes.chosen, g.ints(1, -1, 1)), 0, 1), g.ints(0))
    total: ir.Value | None = None
    for start, end in spans:
        numbers = g.op("Slice", _numbers(g, experts.count), g.ints(start), g.ints(end), g.ints(0))
        chosen = g.op("Reshape", g.op("Add", zero, numbers), g.ints(-1))
        weights = g.op("Slice", spread, g.ints(start), g.ints(end), g.ints(2))
        up, down = _copies(g, chosen, experts)
        width = 2 * config.intermediate_size
        up_bias = g.op("Slice", experts.up[2], g.ints(start * width), g.ints(end * width), g.ints(0))
        down_bias = g.op("Slice", experts.down[2], g.ints(start), g.ints(end), g.ints(0))
        taken = Experts(end - start, (up[0], up[1], up_bias), (down[0], down[1], down_bias))
        part = mixed(g, x, weights, taken)
        total = part if total is None else g.op("Add", total, part)
    assert total is not None
    return total


def _spread(g: GraphBuilder, routes: Routes) -> ir.Value:
    """The weight of each expert for each token, [1, sequence, E]; 0 for those not chosen."""
    # One-hot by comparison: ScatterElements is registered for an older version than this opset's.
    hit = g.op("Equal", g.op("Unsqueeze", routes.chosen, g.ints(3)), _numbers(g, g.config.num_local_experts))
    spread = g.op("Mul", g.op("Cast", hit, to=g.dtype), g.op("Unsqueeze", routes.weights, g.ints(3)))
    return g.op("ReduceSum", spread, g.ints(2), keepdims=0)


def _slots(g: GraphBuilder, x: ir.Value, routes: Routes, experts: Experts) -> ir.Value:
    chosen = g.op("Reshape", routes.chosen, g.ints(-1))
    up, down = _copies(g, chosen, experts)
    up_bias = g.op("Gather", experts.up[2], _blocks(g, chosen, 2 * g.config.intermediate_size), axis=0)
    down_bias = g.op("Gather", experts.down[2], chosen, axis=0)
    taken = Experts(g.config.num_experts_per_tok, (up[0], up[1], up_bias), (down[0], down[1], down_bias))
    return mixed(g, x, routes.weights, taken)


def _copies(g: GraphBuilder, chosen: ir.Value, experts: Experts) -> tuple[list[ir.Value], list[ir.Value]]:
    """Codes and scales of both projections of some experts; ``chosen`` is int64 [count], or empty."""
    config, scheme = g.config, g.quantisation.experts
    rows = _blocks(g, chosen, 2 * config.intermediate_size)
    columns = _blocks(g, chosen, config.intermediate_size // scheme.block_size)
    up = [g.op("Gather", part, rows, axis=0) for part in experts.up[:2]]
    return up, [g.op("Gather", part, columns, axis=1) for part in experts.down[:2]]


def _blocks(g: GraphBuilder, chosen: ir.Value, size: int) -> ir.Value:
    """Indices of the chosen blocks of ``size`` rows each, int64 [k · size]."""
    start = g.op("Mul", g.op("Unsqueeze", chosen, g.ints(1)), g.ints(size))
    return g.op("Reshape", g.op("Add", start, _numbers(g, size)), g.ints(-1))


def _numbers(g: GraphBuilder, count: int) -> ir.Value:
    """0, 1, … count - 1, int64; one initializer for all layers."""
    name = f"numbers_{count}"
    spec = TensorSpec(name, ir.DataType.INT64, (count,))
    return g.shared(name) or g.weights("indices", "int64", [spec], lambda: Made([np.arange(count)]))[0]
