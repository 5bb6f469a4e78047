"""Powers of two that keep queries, keys and values in float16's range in a float16 graph, at no cost at run time.

Values of a layer are divided by the power of two that brings the longest row of v_proj to unit length. A value is then
no larger than the length of the norm's output, in the cache too, and so is o_proj's product, whose rows have unit
length as well. o_proj's factors undo the division. Queries and keys are brought to one size, so that neither is large
while the other is small. Powers of two are exact; they are stored in weights and factors. The norm's weight is left out
of the calculation: it is large in channels whose activations are small, and values would become too small for float16.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.linear import Gains
from gptoss_convert.row_scaling import Exponents, compute_exponents, compute_factors


@functools.lru_cache(maxsize=2)  # a layer's weights and biases are made one after the other
def value_exponent(checkpoint: Checkpoint, layer: int) -> int:
    """The exponent of the power of two that divides a layer's values."""
    return _longest_row_exponent(checkpoint, layer, "v")


@functools.lru_cache(maxsize=2)
def query_exponent(checkpoint: Checkpoint, layer: int) -> int:
    """The exponent of the power of two that divides a layer's queries and multiplies its keys."""
    return (_longest_row_exponent(checkpoint, layer, "q") - _longest_row_exponent(checkpoint, layer, "k")) // 2


def _longest_row_exponent(checkpoint: Checkpoint, layer: int, name: str) -> int:
    """The exponent of the length of a projection's longest row, its bias included."""
    module, hidden = f"model.layers.{layer}.self_attn.{name}_proj", checkpoint.config.hidden_size
    weights = checkpoint.array(f"{module}.weight").astype(np.float64)
    bias = checkpoint.array(f"{module}.bias").astype(np.float64)
    lengths = np.linalg.norm(weights, axis=1) + np.abs(bias) / np.sqrt(hidden)
    return int(compute_exponents(lengths.max(keepdims=True))[0])


def qkv_exponents(g: GraphBuilder, layer: int) -> Exponents:
    """Exponents of the powers of two that divide the rows of Q, K and V, int32 [ΣN]."""
    query, value = query_exponent(g.checkpoint, layer), value_exponent(g.checkpoint, layer)
    size, kv = g.config.head_dim, g.config.num_key_value_heads
    exponents = np.array([query, -query, value], np.int32)
    return np.repeat(exponents, [g.config.num_attention_heads * size, kv * size, kv * size])


def qkv_gains(g: GraphBuilder, layer: int) -> Gains:
    """The same as factors, float32 [ΣN], with attention's scale applied to the queries, which keeps scores small."""

    def gains() -> NDArray[np.float32]:
        result = compute_factors(-qkv_exponents(g, layer))
        result[: g.config.num_attention_heads * g.config.head_dim] *= np.float32(g.config.head_dim**-0.5)
        return result

    return gains


def output_gains(g: GraphBuilder, layer: int) -> Gains:
    """Factors of o_proj's rows that undo the division of the values, float32 [hidden]."""

    def gains() -> NDArray[np.float32]:
        return np.full(g.config.hidden_size, np.ldexp(1.0, value_exponent(g.checkpoint, layer)), np.float32)

    return gains
