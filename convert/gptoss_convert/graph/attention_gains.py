"""How large queries, keys and values are in a float16 graph's attention: as float16 wants them, at no cost.

Values are divided by a power of two of their layer that brings the longest row of v_proj to unit length: a value is
then no larger than what the norm gives is long, in the cache too, and so is o_proj's product, whose rows have unit
length as well. o_proj's factors take it back. Queries and keys are brought to one size, so that neither is large where
the other is small. Powers of two are exact, and weights and factors hold them. The norm's weight is not counted in: it
is large where channels are small, and values would be too small for float16.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.linear import Gains
from gptoss_convert.row_scaling import Exponents, compute_exponents, compute_factors


@functools.lru_cache(maxsize=2)  # a layer's weights and biases ask one after the other
def value_exponent(checkpoint: Checkpoint, layer: int) -> int:
    """The exponent of the power of two that a layer's values are divided by."""
    return _exponent(checkpoint, layer, "v")


@functools.lru_cache(maxsize=2)
def query_exponent(checkpoint: Checkpoint, layer: int) -> int:
    """The exponent of the power of two that a layer's queries are divided by, and its keys multiplied with."""
    return (_exponent(checkpoint, layer, "q") - _exponent(checkpoint, layer, "k")) // 2


def _exponent(checkpoint: Checkpoint, layer: int, name: str) -> int:
    """Of the longest row of a projection, its bias included."""
    module, hidden = f"model.layers.{layer}.self_attn.{name}_proj", checkpoint.config.hidden_size
    weights = checkpoint.array(f"{module}.weight").astype(np.float64)
    bias = checkpoint.array(f"{module}.bias").astype(np.float64)
    lengths = np.linalg.norm(weights, axis=1) + np.abs(bias) / np.sqrt(hidden)
    return int(compute_exponents(lengths.max(keepdims=True))[0])


def qkv_exponents(g: GraphBuilder, layer: int) -> Exponents:
    """What the rows of Q, K and V are divided by, as exponents; int32 [ΣN]."""
    query, value = query_exponent(g.checkpoint, layer), value_exponent(g.checkpoint, layer)
    size, kv = g.config.head_dim, g.config.num_key_value_heads
    exponents = np.array([query, -query, value], np.int32)
    return np.repeat(exponents, [g.config.num_attention_heads * size, kv * size, kv * size])


def qkv_gains(g: GraphBuilder, layer: int) -> Gains:
    """The same as factors, and attention's scale on queries: scores are no larger than they have to be."""

    def gains() -> NDArray[np.float32]:
        result = compute_factors(-qkv_exponents(g, layer))
        result[: g.config.num_attention_heads * g.config.head_dim] *= np.float32(g.config.head_dim**-0.5)
        return result

    return gains


def output_gains(g: GraphBuilder, layer: int) -> Gains:
    """Of the rows of o_proj: what values were divided by; float32 [hidden]."""

    def gains() -> NDArray[np.float32]:
        return np.full(g.config.hidden_size, np.ldexp(1.0, value_exponent(g.checkpoint, layer)), np.float32)

    return gains
