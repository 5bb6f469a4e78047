"""Attention with sinks and windows from plain operators, for execution providers whose fused attention has neither.

The query heads that share a key-value head are rows of one matrix product, so keys and values are never repeated. The
sink is the score of the cache's last slot, whose value is zero: no column has to be appended and removed.
Source: ``eager_attention_forward`` of transformers' gpt-oss; DirectML's operators as onnxruntime registers them.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from gptoss_convert.graph import cache_static, rotary
from gptoss_convert.graph.attention_gains import output_gains, qkv_gains
from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.cache_static import CacheSlots
from gptoss_convert.graph.linear import scaled_linear
from gptoss_convert.graph.precision import FLOAT32, to_graph_type

_MASKED = -65504.0  # score of slots that a token must not see: float16's lowest value, below any real score


def prepare(g: GraphBuilder) -> Callable[[GraphBuilder, int, ir.Value], ir.Value]:
    """Adds what all layers share (slots, cos, sin) and returns the function that emits one layer's attention."""
    slots, (cos, sin) = cache_static.declare_slots(g), rotary.cos_sin(g, FLOAT32)

    def attention(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
        """Self-attention of one layer, float32 [1, sequence, hidden] to the same."""
        module, scheme = f"model.layers.{layer}.self_attn", g.quantisation.attention
        # Q, K and V in one product; rotary embedding of Q and K
        query_key, value = _project_qkv(g, layer, x)
        query, key, value = _rotate(g, query_key, value, slots.position_ids, cos, sin)
        # KV cache
        keys = cache_static.update(g, layer, "key", _split_heads(g, key), slots)
        values = cache_static.update(g, layer, "value", _split_heads(g, value), slots)
        # Scaled dot-product attention
        heads = _merge_heads(g, _attend(g, layer, _group_queries(g, query), keys, values, slots))
        # Output projection
        output = f"{module}.o_proj"
        return scaled_linear(g, heads, output, [output], "attention", scheme, gains=output_gains(g, layer))

    return attention


def _project_qkv(g: GraphBuilder, layer: int, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Q and K side by side, float32 [1, sequence, (heads + kv_heads) · head_dim], and V likewise."""
    config, module, scheme = g.config, f"model.layers.{layer}.self_attn", g.quantisation.attention
    projections = [f"{module}.{name}_proj" for name in "qkv"]
    narrow = g.watch("attention_input", to_graph_type(g, x))
    gains = qkv_gains(g, layer)  # they include attention's scale: scores are no larger than they have to be
    qkv = scaled_linear(
        g, narrow, f"{module}.qkv_proj", projections, "attention", scheme, gains=gains, bias_gains=gains
    )
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    query_key, value = g.ops("Split", qkv, g.ints((heads + kv_heads) * size, kv_heads * size), outputs=2, axis=2)
    return query_key, value


def _rotate(
    g: GraphBuilder, query_key: ir.Value, value: ir.Value, position_ids: ir.Value, cos: ir.Value, sin: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Applies the rotary embedding to Q and K in float32; all three [1, sequence, …] in the graph's float type."""
    heads, kv_heads, size = g.config.num_attention_heads, g.config.num_key_value_heads, g.config.head_dim
    query_key = g.op(
        "RotaryEmbedding", query_key, position_ids, cos, sin, domain=MICROSOFT, num_heads=heads + kv_heads
    )  # fmt: skip
    value = g.watch("value", to_graph_type(g, value))
    query_key = g.watch("query_key", to_graph_type(g, query_key))
    query, key = g.ops("Split", query_key, g.ints(heads * size, kv_heads * size), outputs=2, axis=2)
    return query, key, value


def _attend(
    g: GraphBuilder, layer: int, query: ir.Value, keys: ir.Value, values: ir.Value, slots: CacheSlots
) -> ir.Value:
    """softmax(Q · Kᵀ + mask) · V, with the sink's score in the last slot.

    Args:
        g: the builder.
        layer: the layer.
        query: scaled queries, [1, kv_heads, group · sequence, head_dim].
        keys: [1, kv_heads, max_length, head_dim].
        values: the same shape; the last slot's are zero.
        slots: what each token sees.

    Returns:
        [1, kv_heads, group · sequence, head_dim].
    """
    scores = g.op("MatMul", query, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
    g.watch("scores", scores)
    scores = g.op("Where", slots.seen[g.config.window(layer)], scores, g.constant(_MASKED))
    scores = g.op("Where", slots.is_sink, _sink_scores(g, layer, slots), scores)
    return g.op("MatMul", g.op("Softmax", scores, axis=-1), values)


def _sink_scores(g: GraphBuilder, layer: int, slots: CacheSlots) -> ir.Value:
    """A layer's sinks for each row of the scores, [1, kv_heads, group · sequence, 1]."""
    source, kv_heads = f"model.layers.{layer}.self_attn.sinks", g.config.num_key_value_heads
    sinks = g.copy_tensor(source, source, group="sinks")
    column = g.op("Reshape", sinks, g.ints(1, kv_heads, g.config.num_attention_heads // kv_heads, 1))
    rows = g.op("Add", column, slots.zero_by_token)
    return g.op("Reshape", rows, g.ints(1, kv_heads, -1, 1))


def _split_heads(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """[1, sequence, kv_heads · head_dim] to [1, kv_heads, sequence, head_dim]."""
    split = g.op("Reshape", x, g.ints(1, -1, g.config.num_key_value_heads, g.config.head_dim))
    return g.op("Transpose", split, perm=[0, 2, 1, 3])


def _group_queries(g: GraphBuilder, query: ir.Value) -> ir.Value:
    """[1, sequence, heads · head_dim] to [1, kv_heads, group · sequence, head_dim]."""
    kv_heads, size = g.config.num_key_value_heads, g.config.head_dim
    split = g.op("Reshape", query, g.ints(1, -1, kv_heads, g.config.num_attention_heads // kv_heads, size))
    return g.op("Reshape", g.op("Transpose", split, perm=[0, 2, 3, 1, 4]), g.ints(1, kv_heads, -1, size))


def _merge_heads(g: GraphBuilder, attended: ir.Value) -> ir.Value:
    """[1, kv_heads, group · sequence, head_dim] to [1, sequence, heads · head_dim]."""
    heads, kv_heads, size = g.config.num_attention_heads, g.config.num_key_value_heads, g.config.head_dim
    split = g.op("Reshape", attended, g.ints(1, kv_heads, heads // kv_heads, -1, size))
    return g.op("Reshape", g.op("Transpose", split, perm=[0, 3, 1, 2, 4]), g.ints(1, -1, heads * size))
