"""A key-value cache of fixed size, for execution providers that want static shapes: where a token goes, what it sees.

Position p lives in slot p of a buffer that is input and output at once (genai's ``past_present_share_buffer``). The
buffer's last slot never holds a token: it is the attention sink's, with a value of zero. Everything is data made from
``position_ids``, so one graph serves a prompt, a piece of one and a single token, and going back costs nothing: slots
after the position are not seen. They must hold numbers, though: a caller starts with zeros, as genai does. Only
operators that DirectML registers are used; nothing is computed on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.precision import FLOAT32, constant32, to_graph_type

_BATCH = 1  # the cache's shapes and the experts' gather are for one sequence


@dataclass(frozen=True)
class Slots:
    """What all layers share.

    Attributes:
        position_ids: int64 [1, sequence].
        kept: bool [1, 1, max_length, 1], slots that keep what they hold.
        placing: float [1, 1, max_length, sequence], 1 where a new token is put; the sink's slot has none.
        is_sink: bool [1, 1, 1, max_length].
        seen: by window (None: full attention) the slots that a token sees, bool [1, 1, group · sequence, max_length].
        zero_by_token: float [1, 1, 1, sequence], zeros, to spread over tokens what does not depend on them.
    """

    position_ids: ir.Value
    kept: ir.Value
    placing: ir.Value
    is_sink: ir.Value
    seen: dict[int | None, ir.Value]
    zero_by_token: ir.Value


def slots(g: GraphBuilder) -> Slots:
    """Adds ``position_ids`` and ``attention_mask`` and makes of them what all layers need.

    The mask's values are not read: genai keeps it at the buffer's length, and that length is what is taken from it.
    """
    config = g.config
    mask = g.input("attention_mask", ir.DataType.INT64, [_BATCH, "max_length"])
    position_ids = g.input("position_ids", ir.DataType.INT64, [_BATCH, "sequence"])
    group = config.num_attention_heads // config.num_key_value_heads
    with g.scope("slots"):
        # Positions are compared in float32: whole numbers up to 2^24 are exact, float16 ends at 2048.
        ones = g.op("Add", g.op("Mul", _float32(g, mask), constant32(g, 0)), constant32(g, 1))
        number = g.op("Sub", g.op("CumSum", ones, g.constant(1, np.int64)), constant32(g, 1))
        from_end = g.op("CumSum", ones, g.constant(1, np.int64), reverse=1)
        at_end = g.op("Less", from_end, constant32(g, 1.5))
        position = g.op("Unsqueeze", _float32(g, position_ids), g.ints(2))
        ahead = g.op("Sub", g.op("Unsqueeze", number, g.ints(1)), position)  # [1, sequence, max_length]
        here = g.op("Cast", g.op("Less", g.op("Abs", ahead), constant32(g, 0.5)), to=ir.DataType.FLOAT)
        usable = g.op("Cast", g.op("Not", at_end), to=ir.DataType.FLOAT)
        here = g.op("Mul", here, g.op("Unsqueeze", usable, g.ints(1)))
        sink = g.op("Cast", at_end, to=ir.DataType.FLOAT)
        touched = g.op("Add", g.op("ReduceMax", here, g.ints(1), keepdims=0), sink)
        kept = g.op("Unsqueeze", g.op("Less", touched, constant32(g, 0.5)), g.ints(0, 3))
        placing = g.op("Unsqueeze", g.op("Transpose", to_graph_type(g, here), perm=[0, 2, 1]), g.ints(1))
        before = g.op("Less", ahead, constant32(g, 0.5))
        seen: dict[int | None, ir.Value] = {}
        for window in dict.fromkeys(config.window(layer) for layer in range(config.num_hidden_layers)):
            inside = before
            if window is not None:
                inside = g.op("And", before, g.op("Greater", ahead, constant32(g, 0.5 - window)))
            rows = g.op("Concat", *[inside] * group, axis=1) if group > 1 else inside
            seen[window] = g.op("Unsqueeze", rows, g.ints(1))
        zeros = g.op("Mul", g.op("Unsqueeze", _float32(g, position_ids), g.ints(1, 2)), constant32(g, 0))
        return Slots(
            position_ids, kept, placing, g.op("Unsqueeze", at_end, g.ints(1, 2)), seen, to_graph_type(g, zeros)
        )


def update(g: GraphBuilder, layer: int, part: str, new: ir.Value, where: Slots) -> ir.Value:
    """Puts a layer's new keys or values into its cache.

    Args:
        g: the builder.
        layer: whose.
        part: "key" or "value".
        new: [1, kv_heads, sequence, head_dim].
        where: which slots.

    Returns:
        The cache, [1, kv_heads, max_length, head_dim], an output of the graph as well.
    """
    shape: list[int | str] = [_BATCH, g.config.num_key_value_heads, "max_length", g.config.head_dim]
    past = g.input(f"past_key_values.{layer}.{part}", g.dtype, shape)
    present = g.op("Where", where.kept, past, g.op("MatMul", where.placing, new))
    g.output(present, f"present.{layer}.{part}", g.dtype, shape)
    return present


def _float32(g: GraphBuilder, value: ir.Value) -> ir.Value:
    return g.op("Cast", value, to=FLOAT32)
