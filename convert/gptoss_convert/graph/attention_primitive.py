"""Attention with sinks and windows from plain operators, for execution providers whose fused attention has neither.

The query heads of one key-value head are rows of one matrix product, so keys and values are never repeated. The sink
is the score of the cache's last slot, whose value is zero: no column to join and to cut off again.
Source: ``eager_attention_forward`` of transformers' gpt-oss; DirectML's operators as onnxruntime registers them.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from gptoss_convert.graph import cache_static, rotary
from gptoss_convert.graph.attention_gains import output_gains, qkv_gains
from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.linear import scaled_linear
from gptoss_convert.graph.precision import FLOAT32, to_graph_type

_UNSEEN = -65504.0  # score of slots that a token must not see: float16's lowest, below any real score


def prepare(g: GraphBuilder) -> Callable[[GraphBuilder, int, ir.Value], ir.Value]:
    """Adds what all layers share (slots, cos, sin) and returns the function that emits one layer's attention."""
    slots, (cos, sin) = cache_static.slots(g), rotary.cos_sin(g, FLOAT32)

    def attention(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
        """Self-attention of one layer, float32 [1, sequence, hidden] to the same."""
        module, config, scheme = f"model.layers.{layer}.self_attn", g.config, g.quantisation.attention
        projections = [f"{module}.{name}_proj" for name in "qkv"]
        narrow = g.watch("attention_input", to_graph_type(g, x))
        gains = qkv_gains(g, layer)  # attention's scale among them: scores are no larger than they have to be
        qkv = scaled_linear(
            g, narrow, f"{module}.qkv_proj", projections, "attention", scheme, gains=gains, bias_gains=gains
        )
        heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        turned, value = g.ops("Split", qkv, g.ints((heads + kv_heads) * size, kv_heads * size), outputs=2, axis=2)
        turned = g.op(
            "RotaryEmbedding", turned, slots.position_ids, cos, sin, domain=MICROSOFT, num_heads=heads + kv_heads
        )  # fmt: skip
        value = g.watch("value", to_graph_type(g, value))
        turned = g.watch("query_key", to_graph_type(g, turned))
        query, key = g.ops("Split", turned, g.ints(heads * size, kv_heads * size), outputs=2, axis=2)
        keys = cache_static.update(g, layer, "key", _by_head(g, key), slots)
        values = cache_static.update(g, layer, "value", _by_head(g, value), slots)
        scores = g.op("MatMul", _by_group(g, query), g.op("Transpose", keys, perm=[0, 1, 3, 2]))
        g.watch("scores", scores)
        scores = g.op("Where", slots.seen[config.window(layer)], scores, g.constant(_UNSEEN))
        scores = g.op("Where", slots.is_sink, _sinks(g, f"{module}.sinks", slots), scores)
        mixed = g.op("MatMul", g.op("Softmax", scores, axis=-1), values)
        mixed = _together(g, mixed)
        output = f"{module}.o_proj"
        return scaled_linear(g, mixed, output, [output], "attention", scheme, gains=output_gains(g, layer))

    return attention


def _by_head(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """[1, sequence, kv_heads · head_dim] to [1, kv_heads, sequence, head_dim]."""
    split = g.op("Reshape", x, g.ints(1, -1, g.config.num_key_value_heads, g.config.head_dim))
    return g.op("Transpose", split, perm=[0, 2, 1, 3])


def _by_group(g: GraphBuilder, query: ir.Value) -> ir.Value:
    """[1, sequence, heads · head_dim] to [1, kv_heads, group · sequence, head_dim]."""
    kv_heads, size = g.config.num_key_value_heads, g.config.head_dim
    split = g.op("Reshape", query, g.ints(1, -1, kv_heads, g.config.num_attention_heads // kv_heads, size))
    return g.op("Reshape", g.op("Transpose", split, perm=[0, 2, 3, 1, 4]), g.ints(1, kv_heads, -1, size))


def _together(g: GraphBuilder, mixed: ir.Value) -> ir.Value:
    """[1, kv_heads, group · sequence, head_dim] to [1, sequence, heads · head_dim]."""
    heads, kv_heads, size = g.config.num_attention_heads, g.config.num_key_value_heads, g.config.head_dim
    split = g.op("Reshape", mixed, g.ints(1, kv_heads, heads // kv_heads, -1, size))
    return g.op("Reshape", g.op("Transpose", split, perm=[0, 3, 1, 2, 4]), g.ints(1, -1, heads * size))


def _sinks(g: GraphBuilder, source: str, slots: cache_static.Slots) -> ir.Value:
    """A layer's sinks by row of the scores, [1, kv_heads, group · sequence, 1]."""
    kv_heads = g.config.num_key_value_heads
    sinks = g.copied(source, source, group="sinks")
    column = g.op("Reshape", sinks, g.ints(1, kv_heads, g.config.num_attention_heads // kv_heads, 1))
    rows = g.op("Add", column, slots.zero_by_token)
    return g.op("Reshape", rows, g.ints(1, kv_heads, -1, 1))
