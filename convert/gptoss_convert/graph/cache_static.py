"""A key-value cache of fixed size, for execution providers that want static shapes.

Position p is stored in slot p of a buffer that is both input and output (genai's ``past_present_share_buffer``). The
last slot never holds a token: it is the attention sink's, with a value of zero. All masks are computed from
``position_ids``, so one graph serves a whole prompt, a piece of it and a single token, and a rewind costs nothing:
slots behind the position are masked. They must hold finite numbers, so a caller starts with zeros, as genai does. Only
operators that DirectML registers are used, and nothing is computed on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.precision import FLOAT32, constant32, to_graph_type

_BATCH = 1  # the cache's shapes and the experts' gather are for one sequence


@dataclass(frozen=True)
class CacheSlots:
    """Where tokens are stored and which slots they see; all layers share it.

    Attributes:
        position_ids: int64 [1, sequence].
        kept: slots that keep their content, bool [1, 1, max_length, 1].
        placing: 1 where a new token is stored, float [1, 1, max_length, sequence]; 0 in the sink's slot.
        is_sink: bool [1, 1, 1, max_length].
        seen: the slots that a token sees, bool [1, 1, group · sequence, max_length], by window (None: full attention).
        zero_by_token: zeros, float [1, 1, 1, sequence]; adding them repeats a value for each token.
    """

    position_ids: ir.Value
    kept: ir.Value
    placing: ir.Value
    is_sink: ir.Value
    seen: dict[int | None, ir.Value]
    zero_by_token: ir.Value


def declare_slots(g: GraphBuilder) -> CacheSlots:
    """Adds the inputs ``position_ids`` and ``attention_mask`` and computes from them what all layers share.

    The mask's values are not read. genai keeps the mask as long as the buffer, and only its length is used.
    """
    mask = g.input("attention_mask", ir.DataType.INT64, [_BATCH, "max_length"])
    position_ids = g.input("position_ids", ir.DataType.INT64, [_BATCH, "sequence"])
    with g.scope("slots"):
        # Positions are compared in float32: whole numbers up to 2^24 are exact, float16 ends at 2048.
        slot, at_end = _number_slots(g, mask)
        position = g.op("Unsqueeze", _float32(g, position_ids), g.ints(2))
        ahead = g.op("Sub", g.op("Unsqueeze", slot, g.ints(1)), position)  # slot - position [1, sequence, max_length]
        kept, placing = _place_tokens(g, ahead, at_end)
        seen = _mask_slots(g, ahead)
        zeros = g.op("Mul", g.op("Unsqueeze", _float32(g, position_ids), g.ints(1, 2)), constant32(g, 0))
        is_sink = g.op("Unsqueeze", at_end, g.ints(1, 2))
        return CacheSlots(position_ids, kept, placing, is_sink, seen, to_graph_type(g, zeros))


def update(g: GraphBuilder, layer: int, part: str, new: ir.Value, slots: CacheSlots) -> ir.Value:
    """Stores a layer's new keys or values in its cache.

    Args:
        g: the builder.
        layer: the layer.
        part: "key" or "value".
        new: [1, kv_heads, sequence, head_dim].
        slots: where tokens are stored.

    Returns:
        The cache, [1, kv_heads, max_length, head_dim]; it is an output of the graph as well.
    """
    shape: list[int | str] = [_BATCH, g.config.num_key_value_heads, "max_length", g.config.head_dim]
    past = g.input(f"past_key_values.{layer}.{part}", g.dtype, shape)
    present = g.op("Where", slots.kept, past, g.op("MatMul", slots.placing, new))
    g.output(present, f"present.{layer}.{part}", g.dtype, shape)
    return present


def _number_slots(g: GraphBuilder, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The slots' numbers 0, 1, …, float32 [1, max_length], and whether a slot is the last one, bool [1, max_length]."""
    ones = g.op("Add", g.op("Mul", _float32(g, mask), constant32(g, 0)), constant32(g, 1))
    number = g.op("Sub", g.op("CumSum", ones, g.constant(1, np.int64)), constant32(g, 1))
    from_end = g.op("CumSum", ones, g.constant(1, np.int64), reverse=1)
    return number, g.op("Less", from_end, constant32(g, 1.5))


def _place_tokens(g: GraphBuilder, ahead: ir.Value, at_end: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``kept`` and ``placing`` of :class:`CacheSlots`. The sink's slot is not kept either: it is set to zero."""
    here = g.op("Cast", g.op("Less", g.op("Abs", ahead), constant32(g, 0.5)), to=ir.DataType.FLOAT)
    usable = g.op("Cast", g.op("Not", at_end), to=ir.DataType.FLOAT)
    here = g.op("Mul", here, g.op("Unsqueeze", usable, g.ints(1)))
    sink = g.op("Cast", at_end, to=ir.DataType.FLOAT)
    written = g.op("Add", g.op("ReduceMax", here, g.ints(1), keepdims=0), sink)
    kept = g.op("Unsqueeze", g.op("Less", written, constant32(g, 0.5)), g.ints(0, 3))
    return kept, g.op("Unsqueeze", g.op("Transpose", to_graph_type(g, here), perm=[0, 2, 1]), g.ints(1))


def _mask_slots(g: GraphBuilder, ahead: ir.Value) -> dict[int | None, ir.Value]:
    """``seen`` of :class:`CacheSlots`, for every window that a layer has."""
    config = g.config
    group = config.num_attention_heads // config.num_key_value_heads
    not_ahead = g.op("Less", ahead, constant32(g, 0.5))
    seen: dict[int | None, ir.Value] = {}
    for window in dict.fromkeys(config.window(layer) for layer in range(config.num_hidden_layers)):
        visible = not_ahead
        if window is not None:
            visible = g.op("And", not_ahead, g.op("Greater", ahead, constant32(g, 0.5 - window)))
        rows = g.op("Concat", *[visible] * group, axis=1) if group > 1 else visible
        seen[window] = g.op("Unsqueeze", rows, g.ints(1))
    return seen


def _float32(g: GraphBuilder, value: ir.Value) -> ir.Value:
    return g.op("Cast", value, to=FLOAT32)
