"""The mixture of experts composed of plain operators, four designs over one layout of weights (experts_matmul.py).

    dense    every expert, those not chosen weighted 0: two matrix products a layer for any number of tokens
    slots    the chosen experts' blocks gathered, then the same two products: one token only
    grouped  each expert for the tokens that chose it, whose number is data: for the CPU, as a check of the others
    split    the first token by slots; the others, if there are any, dense, some experts at a time. One graph that
             decodes by slots and prefills dense: with one token the dense half is empty tensors, which DirectML does
             not compute, nor what they are gathered from

No control flow, no shapes on the CPU. docs/directml.md compares what they read and write.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.graph.experts_matmul import Experts, all_experts, finish, mix
from gptoss_convert.graph.pieces import Limit
from gptoss_convert.graph.precision import FLOAT32, constant32, to_graph_type
from gptoss_convert.graph.router import router_float32
from gptoss_convert.weights import RecipeResult, TensorSpec

_TO_THE_END = (1 << 63) - 1
Operands = tuple[ir.Value, ir.Value]  # codes and scales


@dataclass(frozen=True)
class Routes:
    """Where tokens go: chosen experts int64 and their weights float32, both [1, sequence, k]."""

    chosen: ir.Value
    weights: ir.Value


def moe_dense(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """All experts for every token, float32 [1, sequence, hidden] to the same."""
    routes, experts, narrow = _routes(g, layer, x), all_experts(g, layer), _narrow(g, x)
    spread = _spread(g, routes)
    return finish(g, mix(g, narrow, spread, experts), spread, experts)


def moe_slots(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """The chosen experts for one token, float32 [1, 1, hidden] to the same."""
    return _slots(g, _narrow(g, x), _routes(g, layer, x), all_experts(g, layer))


def moe_grouped(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Each expert for the tokens that chose it, float32 [1, sequence, hidden] to the same.

    Shapes depend on data, which DirectML cannot do, and a prompt costs the CPU an eighth of what dense does.
    """
    routes, experts, narrow = _routes(g, layer, x), all_experts(g, layer), _narrow(g, x)
    spread, hidden = _spread(g, routes), g.config.hidden_size
    total = g.op("Mul", g.op("Reshape", x, g.ints(-1, hidden)), constant32(g, 0))
    for expert in range(experts.count):
        weight = g.op("Reshape", g.op("Slice", spread, g.ints(expert), g.ints(expert + 1), g.ints(2)), g.ints(-1))
        tokens = g.op("Reshape", g.op("NonZero", weight), g.ints(-1))
        taken = g.op("Gather", narrow, tokens, axis=1)
        weights = g.op("Reshape", g.op("Gather", weight, tokens, axis=0), g.ints(1, -1, 1))
        part = g.op("Reshape", mix(g, taken, weights, _one(g, experts, expert)), g.ints(-1, hidden))
        total = g.op("ScatterND", total, g.op("Unsqueeze", tokens, g.ints(1)), part, reduction="add")
    return finish(g, g.op("Unsqueeze", total, g.ints(0)), spread, experts)


def moe_split(limit: Limit) -> Layer:
    """The chosen experts for the first token and all for the others, float32 [1, sequence, hidden] to the same.

    Args:
        limit: of a dequantised weight; says how many experts are taken at a time.
    """

    def moe(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
        routes, experts, narrow = _routes(g, layer, x), all_experts(g, layer), _narrow(g, x)
        first = _slots(
            g, _tokens(g, narrow, 0, 1), Routes(*(_tokens(g, part, 0, 1) for part in _parts(routes))), experts
        )
        others = Routes(*(_tokens(g, part, 1, _TO_THE_END) for part in _parts(routes)))
        rest = _dense_in_pieces(g, _tokens(g, narrow, 1, _TO_THE_END), others, experts, limit)
        return g.op("Concat", first, rest, axis=1)

    return moe


def _parts(routes: Routes) -> tuple[ir.Value, ir.Value]:
    return routes.chosen, routes.weights


def _tokens(g: GraphBuilder, x: ir.Value, start: int, end: int) -> ir.Value:
    return g.op("Slice", x, g.ints(start), g.ints(end), g.ints(1))


def _routes(g: GraphBuilder, layer: int, x: ir.Value) -> Routes:
    """The k most likely experts of each token, weighted by a softmax over those alone."""
    top, chosen = g.ops("TopK", router_float32(g, layer, x), g.ints(g.config.num_experts_per_tok), outputs=2, axis=-1)
    return Routes(chosen, g.op("Softmax", top, axis=-1))


def _narrow(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.watch("experts_input", to_graph_type(g, x))


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
        part = mix(g, x, weights, replace(experts, count=end - start, up=(*up, up_bias), down=(*down, experts.down[2])))
        total = part if total is None else g.op("Add", total, part)
    assert total is not None
    return finish(g, total, spread, experts)


def _spread(g: GraphBuilder, routes: Routes) -> ir.Value:
    """The weight of each expert for each token, float32 [1, sequence, E]; 0 for those not chosen."""
    # One-hot by comparison: ScatterElements is registered for an older version than this opset's.
    hit = g.op("Equal", g.op("Unsqueeze", routes.chosen, g.ints(3)), _numbers(g, g.config.num_local_experts))
    spread = g.op("Mul", g.op("Cast", hit, to=FLOAT32), g.op("Unsqueeze", routes.weights, g.ints(3)))
    return g.op("ReduceSum", spread, g.ints(2), keepdims=0)


def _slots(g: GraphBuilder, x: ir.Value, routes: Routes, experts: Experts) -> ir.Value:
    chosen = g.op("Reshape", routes.chosen, g.ints(-1))
    up, down = _copies(g, chosen, experts)
    up_bias = g.op("Gather", experts.up[2], _blocks(g, chosen, 2 * g.config.intermediate_size), axis=0)
    down_bias = g.op("Gather", experts.down[2], chosen, axis=0)
    count = g.config.num_experts_per_tok
    taken = replace(experts, count=count, up=(*up, up_bias), down=(*down, down_bias))
    return finish(g, mix(g, x, routes.weights, taken), routes.weights, taken)


def _one(g: GraphBuilder, experts: Experts, expert: int) -> Experts:
    """One expert's operands, cut out of all."""
    config, scheme = g.config, g.quantisation.experts

    def cut(part: ir.Value, size: int, axis: int) -> ir.Value:
        return g.op("Slice", part, g.ints(expert * size), g.ints((expert + 1) * size), g.ints(axis))

    up_codes, up_scales, up_bias = (cut(part, 2 * config.intermediate_size, 0) for part in experts.up)
    codes, scales = (cut(part, config.intermediate_size // scheme.block_size, 1) for part in experts.down[:2])
    return replace(experts, count=1, up=(up_codes, up_scales, up_bias), down=(codes, scales, experts.down[2]))


def _copies(g: GraphBuilder, chosen: ir.Value, experts: Experts) -> tuple[Operands, Operands]:
    """Codes and scales of both projections of some experts; ``chosen`` is int64 [count], or empty."""
    config, scheme = g.config, g.quantisation.experts
    rows = _blocks(g, chosen, 2 * config.intermediate_size)
    columns = _blocks(g, chosen, config.intermediate_size // scheme.block_size)
    up_codes, up_scales = (g.op("Gather", part, rows, axis=0) for part in experts.up[:2])
    down_codes, down_scales = (g.op("Gather", part, columns, axis=1) for part in experts.down[:2])
    return (up_codes, up_scales), (down_codes, down_scales)


def _blocks(g: GraphBuilder, chosen: ir.Value, size: int) -> ir.Value:
    """Indices of the chosen blocks of ``size`` rows each, int64 [k · size]."""
    start = g.op("Mul", g.op("Unsqueeze", chosen, g.ints(1)), g.ints(size))
    return g.op("Reshape", g.op("Add", start, _numbers(g, size)), g.ints(-1))


def _numbers(g: GraphBuilder, count: int) -> ir.Value:
    """0, 1, … count - 1, int64; one initializer for all layers."""
    name = f"numbers_{count}"
    spec = TensorSpec(name, ir.DataType.INT64, (count,))
    return g.shared(name) or g.weights("indices", "int64", [spec], lambda: RecipeResult([np.arange(count)]))[0]
