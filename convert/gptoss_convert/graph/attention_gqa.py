"""Attention by com.microsoft.GroupQueryAttention: rotary embedding, cache, sinks and window in one node.

For the execution providers whose kernel reads ``head_sink`` and ``local_window_size``: CPU, CUDA, WebGPU. DirectML's
kernel ignores both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx_ir as ir

from gptoss_convert.graph import inputs, rotary
from gptoss_convert.graph.attention_gains import output_gains, qkv_exponents
from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.inputs import Lengths
from gptoss_convert.graph.linear import linear, scaled_linear
from gptoss_convert.graph.precision import stores_rows_unscaled, to_graph_type


def prepare(g: GraphBuilder) -> Callable[[GraphBuilder, int, ir.Value], ir.Value]:
    """Adds what all layers share (lengths, cos, sin) and returns the function that emits one layer's attention."""
    lengths, (cos, sin) = inputs.lengths(g), rotary.cos_sin(g)

    def attention(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
        """Self-attention of one layer, float32 [batch, sequence, hidden] to the same."""
        qkv = _project_qkv(g, layer, x)
        heads = _attend(g, layer, qkv, lengths, cos, sin)
        return _project_output(g, layer, heads)

    return attention


def _project_qkv(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Q, K and V side by side, [batch, sequence, (heads + 2 · kv_heads) · head_dim] in the graph's float type."""
    module, scheme = f"model.layers.{layer}.self_attn", g.quantisation.attention
    narrow = g.watch("attention_input", to_graph_type(g, x))
    exponents = None if stores_rows_unscaled(g) else partial(qkv_exponents, g, layer)
    projections = [f"{module}.{name}_proj" for name in "qkv"]
    qkv = linear(g, narrow, f"{module}.qkv_proj", projections, "attention", scheme, exponents=exponents)
    return g.watch("qkv", qkv)


def _attend(g: GraphBuilder, layer: int, qkv: ir.Value, lengths: Lengths, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """Rotary embedding, KV cache and attention with sinks, [batch, sequence, heads · head_dim]."""
    config, module = g.config, f"model.layers.{layer}.self_attn"
    past_key, past_value = inputs.past(g, layer)
    sinks = g.copy_tensor(f"{module}.sinks", f"{module}.sinks", group="sinks")
    heads, key, value = g.ops(
        "GroupQueryAttention",
        *(qkv, None, None, past_key, past_value, lengths.last_position, lengths.total, cos, sin, None, None, sinks),
        outputs=3,
        domain=MICROSOFT,
        num_heads=config.num_attention_heads,
        kv_num_heads=config.num_key_value_heads,
        do_rotary=1,
        rotary_interleaved=0,
        local_window_size=config.window(layer) or -1,
        scale=config.head_dim**-0.5,
    )
    inputs.present(g, layer, key, value)
    return heads


def _project_output(g: GraphBuilder, layer: int, heads: ir.Value) -> ir.Value:
    """[batch, sequence, heads · head_dim] to float32 [batch, sequence, hidden]."""
    output, scheme = f"model.layers.{layer}.self_attn.o_proj", g.quantisation.attention
    if stores_rows_unscaled(g):
        return linear(g, heads, output, [output], "attention", scheme)
    return scaled_linear(g, heads, output, [output], "attention", scheme, gains=output_gains(g, layer))
