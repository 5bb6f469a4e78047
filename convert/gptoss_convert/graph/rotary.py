"""YaRN's rotary embedding: cos and sin for every position, as GroupQueryAttention takes them.

Source: Peng et al., YaRN (https://arxiv.org/abs/2309.00071), in the form of transformers' ``_compute_yarn_parameters``.
Its float32 steps are kept one for one, so that frequencies agree to a unit in the last place.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert.config import GptOssConfig, Yarn
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.weights import RecipeResult, TensorSpec


def cos_sin(g: GraphBuilder, dtype: ir.DataType | None = None) -> tuple[ir.Value, ir.Value]:
    """Declares cos and sin, each [max_position_embeddings, head_dim/2], in a float type, the graph's by default."""
    dtype = dtype or g.dtype
    shape = (g.config.max_position_embeddings, g.config.head_dim // 2)

    def make() -> RecipeResult:
        cos, sin = compute_tables(g.config)
        return RecipeResult([cos.astype(dtype.numpy()), sin.astype(dtype.numpy())])

    specs = [TensorSpec("cos_cache", dtype, shape), TensorSpec("sin_cache", dtype, shape)]
    cos, sin = g.weights("rotary", dtype.name.lower(), specs, make)
    return cos, sin


def compute_tables(config: GptOssConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin, float32 [positions, head_dim/2], scaled by the attention factor."""
    frequencies, factor = inverse_frequencies(config.rope, config.head_dim)
    angles = np.arange(config.max_position_embeddings, dtype=np.float32)[:, None] * frequencies
    return np.cos(angles) * np.float32(factor), np.sin(angles) * np.float32(factor)


def inverse_frequencies(yarn: Yarn, head_dim: int) -> tuple[NDArray[np.float32], float]:
    """Inverse frequencies, float32 [head_dim/2], and YaRN's attention factor, which scales cos and sin."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    periods = np.power(np.float64(yarn.theta), exponents).astype(np.float32)  # rounded once, as torch's mostly is
    extrapolated = np.float32(1) / periods
    if yarn.factor == 1.0:
        return extrapolated, 1.0 if yarn.attention_factor is None else yarn.attention_factor
    interpolated = np.float32(1) / (np.float32(yarn.factor) * periods)
    # Fast dimensions keep their frequency, slow ones are interpolated, with a ramp between the two.
    ramp = _ramp(yarn, head_dim)
    kept = np.float32(1) - ramp.astype(np.float32)
    frequencies = interpolated * (1 - kept) + extrapolated * kept
    factor = yarn.attention_factor if yarn.attention_factor is not None else 0.1 * math.log(yarn.factor) + 1.0
    return frequencies.astype(np.float32), factor


def _ramp(yarn: Yarn, head_dim: int) -> NDArray[np.float32]:
    """0 for dimensions that turn more than beta_fast times in the original context, 1 below beta_slow; [head_dim/2]."""

    def dimension(rotations: float) -> float:
        turns = yarn.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(yarn.theta))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # transformers' guard against a ramp of no width
    positions = np.arange(head_dim // 2, dtype=np.float32)
    ramp: NDArray[np.float32] = np.clip((positions - np.float32(low)) / np.float32(high - low), 0, 1)
    return ramp
