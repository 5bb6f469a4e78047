"""The mixture of experts from plain operators, in four designs over one weight layout (experts_matmul.py).

    dense     runs every expert with a routing weight of 0 for those not chosen: two products a layer, any number of
              tokens
    slots     gathers the chosen experts' weights, then does the same two products: one token only
    grouped   runs each expert for the tokens that chose it; shapes depend on data. For the CPU, to check the others
    split     slots for the first token, dense for the others, some experts at a time. One graph decodes by slots and
              prefills dense: with one token the dense half works on empty tensors, and DirectML computes neither those
              nor the gathers they read

There is no control flow, and no shape is computed on the CPU. docs/directml.md compares the memory traffic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.graph.experts_matmul import Experts, declare_experts, finish_sum, sum_experts
from gptoss_convert.graph.pieces import Limit
from gptoss_convert.graph.precision import FLOAT32, constant32, to_graph_type
from gptoss_convert.graph.router import router_float32
from gptoss_convert.weights import RecipeResult, TensorSpec

_TO_THE_END = (1 << 63) - 1


@dataclass(frozen=True)
class Routing:
    """The k experts of each token.

    Attributes:
        expert_ids: int64 [1, sequence, k].
        weights: float32 [1, sequence, k]; they add up to 1 for each token.
    """

    expert_ids: ir.Value
    weights: ir.Value


def moe_dense(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """All experts for every token, float32 [1, sequence, hidden] to the same."""
    routing, experts, x = _route(g, layer, x), declare_experts(g, layer), _experts_input(g, x)
    weights = _weights_of_all(g, routing)
    return finish_sum(g, sum_experts(g, x, weights, experts), weights, experts)


def moe_slots(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """The chosen experts for one token, float32 [1, 1, hidden] to the same."""
    return _run_slots(g, _experts_input(g, x), _route(g, layer, x), declare_experts(g, layer))


def moe_grouped(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Each expert for the tokens that chose it, float32 [1, sequence, hidden] to the same.

    DirectML cannot run it: shapes depend on data. On the CPU a prompt costs an eighth of what dense costs.
    """
    routing, experts, narrow = _route(g, layer, x), declare_experts(g, layer), _experts_input(g, x)
    weights, hidden = _weights_of_all(g, routing), g.config.hidden_size
    total = g.op("Mul", g.op("Reshape", x, g.ints(-1, hidden)), constant32(g, 0))  # zeros, [sequence, hidden]
    for expert in range(experts.count):
        # The tokens that chose this expert
        weight = g.op("Reshape", g.op("Slice", weights, g.ints(expert), g.ints(expert + 1), g.ints(2)), g.ints(-1))
        tokens = g.op("Reshape", g.op("NonZero", weight), g.ints(-1))
        taken = g.op("Gather", narrow, tokens, axis=1)
        taken_weights = g.op("Reshape", g.op("Gather", weight, tokens, axis=0), g.ints(1, -1, 1))
        # Run the expert on them, and add its output to the sum of these tokens
        output = g.op(
            "Reshape", sum_experts(g, taken, taken_weights, _slice_expert(g, experts, expert)), g.ints(-1, hidden)
        )
        total = g.op("ScatterND", total, g.op("Unsqueeze", tokens, g.ints(1)), output, reduction="add")
    return finish_sum(g, g.op("Unsqueeze", total, g.ints(0)), weights, experts)


def moe_split(limit: Limit) -> Layer:
    """The chosen experts for the first token and all experts for the others, float32 [1, sequence, hidden] to the same.

    Args:
        limit: the most bytes that a dequantised weight may take; it decides how many experts run at a time.
    """

    def moe(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
        routing, experts, x = _route(g, layer, x), declare_experts(g, layer), _experts_input(g, x)
        # The first token: its k experts, gathered
        first = _run_slots(g, _slice_tokens(g, x, 0, 1), _slice_routing(g, routing, 0, 1), experts)
        # The other tokens, if there are any: all experts, some at a time
        others = _slice_routing(g, routing, 1, _TO_THE_END)
        rest = _run_dense_in_pieces(g, _slice_tokens(g, x, 1, _TO_THE_END), others, experts, limit)
        return g.op("Concat", first, rest, axis=1)

    return moe


def _route(g: GraphBuilder, layer: int, x: ir.Value) -> Routing:
    """The k most likely experts of each token, weighted by a softmax over those alone."""
    k = g.ints(g.config.num_experts_per_tok)
    logits, expert_ids = g.ops("TopK", router_float32(g, layer, x), k, outputs=2, axis=-1)
    return Routing(expert_ids, g.op("Softmax", logits, axis=-1))


def _experts_input(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.watch("experts_input", to_graph_type(g, x))


def _weights_of_all(g: GraphBuilder, routing: Routing) -> ir.Value:
    """The routing weight of each expert for each token, float32 [1, sequence, E]; 0 for those not chosen."""
    # One-hot by comparison: DirectML has ScatterElements for an older opset only.
    is_chosen = g.op("Equal", g.op("Unsqueeze", routing.expert_ids, g.ints(3)), _range(g, g.config.num_local_experts))
    one_hot = g.op("Mul", g.op("Cast", is_chosen, to=FLOAT32), g.op("Unsqueeze", routing.weights, g.ints(3)))
    return g.op("ReduceSum", one_hot, g.ints(2), keepdims=0)


def _run_slots(g: GraphBuilder, x: ir.Value, routing: Routing, experts: Experts) -> ir.Value:
    """Gathers the chosen experts of one token and runs those, [1, 1, hidden] to float32 [1, 1, hidden]."""
    expert_ids = g.op("Reshape", routing.expert_ids, g.ints(-1))
    chosen = _gather_weights(g, expert_ids, g.config.num_experts_per_tok, experts)
    rows = _block_indices(g, expert_ids, 2 * g.config.intermediate_size)
    chosen = chosen.with_biases(
        gate_up=g.op("Gather", experts.gate_up.bias, rows, axis=0),
        down=g.op("Gather", experts.down.bias, expert_ids, axis=0),
    )
    return finish_sum(g, sum_experts(g, x, routing.weights, chosen), routing.weights, chosen)


def _run_dense_in_pieces(g: GraphBuilder, x: ir.Value, routing: Routing, experts: Experts, limit: Limit) -> ir.Value:
    """Runs all experts for any number of tokens, also none, as many experts at a time as the limit allows."""
    config = g.config
    nbytes = experts.count * 2 * config.intermediate_size * config.hidden_size * int(g.dtype.itemsize)
    weights = _weights_of_all(g, routing)
    # [0] if there is a token, else empty. Expert ids that are added to it are as many as they were, or none. It also
    # keeps them from being constants: onnxruntime would then gather the experts, and store them, while loading.
    zero = g.op("Mul", _slice_tokens(g, g.op("Reshape", routing.expert_ids, g.ints(1, -1, 1)), 0, 1), g.ints(0))
    total: ir.Value | None = None
    for start, end in limit.spans(experts.count, nbytes):
        ids = g.op("Slice", _range(g, experts.count), g.ints(start), g.ints(end), g.ints(0))
        ids = g.op("Reshape", g.op("Add", zero, ids), g.ints(-1))
        piece_weights = g.op("Slice", weights, g.ints(start), g.ints(end), g.ints(2))
        piece = _gather_weights(g, ids, end - start, experts)
        rows = 2 * config.intermediate_size
        bias = g.op("Slice", experts.gate_up.bias, g.ints(start * rows), g.ints(end * rows), g.ints(0))
        output = sum_experts(g, x, piece_weights, piece.with_biases(gate_up=bias, down=experts.down.bias))
        total = output if total is None else g.op("Add", total, output)
    assert total is not None
    return finish_sum(g, total, weights, experts)


def _gather_weights(g: GraphBuilder, expert_ids: ir.Value, count: int, experts: Experts) -> Experts:
    """Copies codes and scales of some experts; the biases are still those of all.

    Args:
        g: the builder.
        expert_ids: int64 [count], or empty.
        count: the number of experts.
        experts: all experts.
    """
    config, scheme = g.config, g.quantisation.experts
    rows = _block_indices(g, expert_ids, 2 * config.intermediate_size)
    columns = _block_indices(g, expert_ids, config.intermediate_size // scheme.block_size)
    gate_up = experts.gate_up._replace(
        codes=g.op("Gather", experts.gate_up.codes, rows, axis=0),
        scales=g.op("Gather", experts.gate_up.scales, rows, axis=0),
    )
    down = experts.down._replace(
        codes=g.op("Gather", experts.down.codes, columns, axis=1),
        scales=g.op("Gather", experts.down.scales, columns, axis=1),
    )
    return replace(experts, count=count, gate_up=gate_up, down=down)


def _slice_expert(g: GraphBuilder, experts: Experts, expert: int) -> Experts:
    """One expert's weights, cut out of those of all; down's bias is still that of all."""
    config, scheme = g.config, g.quantisation.experts

    def cut(weight: ir.Value, size: int, axis: int) -> ir.Value:
        return g.op("Slice", weight, g.ints(expert * size), g.ints((expert + 1) * size), g.ints(axis))

    rows, columns = 2 * config.intermediate_size, config.intermediate_size // scheme.block_size
    gate_up = experts.gate_up._replace(
        codes=cut(experts.gate_up.codes, rows, axis=0),
        scales=cut(experts.gate_up.scales, rows, axis=0),
        bias=cut(experts.gate_up.bias, rows, axis=0),
    )
    down = experts.down._replace(
        codes=cut(experts.down.codes, columns, axis=1),
        scales=cut(experts.down.scales, columns, axis=1),
    )
    return replace(experts, count=1, gate_up=gate_up, down=down)


def _slice_tokens(g: GraphBuilder, x: ir.Value, start: int, end: int) -> ir.Value:
    return g.op("Slice", x, g.ints(start), g.ints(end), g.ints(1))


def _slice_routing(g: GraphBuilder, routing: Routing, start: int, end: int) -> Routing:
    expert_ids = _slice_tokens(g, routing.expert_ids, start, end)
    return Routing(expert_ids, _slice_tokens(g, routing.weights, start, end))


def _block_indices(g: GraphBuilder, expert_ids: ir.Value, size: int) -> ir.Value:
    """Indices of the experts' rows or columns, ``size`` for each expert, int64 [count · size]."""
    start = g.op("Mul", g.op("Unsqueeze", expert_ids, g.ints(1)), g.ints(size))
    return g.op("Reshape", g.op("Add", start, _range(g, size)), g.ints(-1))


def _range(g: GraphBuilder, count: int) -> ir.Value:
    """0, 1, … count - 1, int64; one initializer for all layers."""
    name = f"numbers_{count}"
    spec = TensorSpec(name, ir.DataType.INT64, (count,))
    return g.find_weight(name) or g.weights("indices", "int64", [spec], lambda: RecipeResult([np.arange(count)]))[0]
