"""The inputs that onnxruntime-genai feeds a decoder, and the lengths derived from them once for all layers.

Knows the names and shapes that genai expects (its docs and src/models/decoder_only.cpp); nothing about their consumers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder

INT32, INT64 = ir.DataType.INT32, ir.DataType.INT64


@dataclass(frozen=True)
class Lengths:
    """Sequence lengths as GroupQueryAttention takes them.

    Attributes:
        last_position: index of the last token, past + new - 1; int32 [batch].
        total: past + new; int32 scalar.
    """

    last_position: ir.Value
    total: ir.Value


def token_ids(g: GraphBuilder) -> ir.Value:
    """Adds ``input_ids``, int64 [batch, sequence]."""
    return g.input("input_ids", INT64, ["batch", "sequence"])


def hidden_states(g: GraphBuilder) -> ir.Value:
    """Adds ``hidden_states``, float32 [batch, sequence, hidden], for graphs of a part of the decoder."""
    return g.input("hidden_states", ir.DataType.FLOAT, ["batch", "sequence", g.config.hidden_size])


def lengths(g: GraphBuilder) -> Lengths:
    """Adds ``attention_mask``, int64 [batch, total], and computes the sequence lengths from it."""
    mask = g.input("attention_mask", INT64, ["batch", "total"])
    with g.scope("lengths"):
        count = g.op("ReduceSum", mask, g.ints(1), keepdims=0)
        last = g.op("Cast", g.op("Sub", count, g.ints(1)), to=INT32)
        total = g.op("Gather", g.op("Shape", mask), g.constant(1, np.int64), axis=0)
        return Lengths(last, g.op("Cast", total, to=INT32))


def past(g: GraphBuilder, layer: int) -> tuple[ir.Value, ir.Value]:
    """Adds the cached keys and values of a layer, each [batch, kv_heads, past, head_dim]."""
    shape: list[int | str] = ["batch", g.config.num_key_value_heads, "past", g.config.head_dim]
    key = g.input(f"past_key_values.{layer}.key", g.dtype, shape)
    return key, g.input(f"past_key_values.{layer}.value", g.dtype, shape)


def present(g: GraphBuilder, layer: int, key: ir.Value, value: ir.Value) -> None:
    """Makes the extended cache of a layer an output, each [batch, kv_heads, total, head_dim]."""
    shape: list[int | str] = ["batch", g.config.num_key_value_heads, "total", g.config.head_dim]
    g.output(key, f"present.{layer}.key", g.dtype, shape)
    g.output(value, f"present.{layer}.value", g.dtype, shape)
