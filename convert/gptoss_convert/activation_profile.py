"""Gives test checkpoints the activations of real gpt-oss checkpoints.

Trained checkpoints have a few massive channels in the residual stream, which grow with every layer, and weights so
small that their block scales are float16 denormals. nano and plain random weights have neither. There are two ways to
get them:

    Profile    random weights with such activations (synthetic.write_checkpoint); a reference gives the correct logits
    Shifts     any checkpoint, nano included, rewritten with mathematically the same logits (synthetic.amplify)

RMSNorm divides by the stream's root mean square, so anything that scales it by a constant leaves the logits unchanged:
a factor on the whole stream, or additional copies of it that no weight reads. A factor moved from o_proj to v_proj, or
from k_proj to q_proj, cancels as well. All factors are powers of two, which are exact in bfloat16 and MXFP4.

Sources: microsoft/onnxruntime-genai pull request 2444 and ROCm/hip-ep 168 and 672 (gpt-oss-120b's residual stream by
layer), kekzl/imp 808 (gpt-oss-20b's o_proj).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gptoss_convert.config import GptOssConfig
from gptoss_convert.errors import CheckpointError

Array = np.ndarray[Any, np.dtype[Any]]
# Largest value of gpt-oss-120b's residual stream by the share of its 36 layers: after layer 0, layer 6, layer 34, and
# the last addition.
GPT_OSS_120B: tuple[tuple[float, float], ...] = ((0.0, 35.0), (0.17, 10_500.0), (0.97, 45_344.0), (1.0, 92_580.0))
_UPDATE = 0.6  # growth of the other channels with each update, relative to their initial size


@dataclass(frozen=True)
class Profile:
    """The residual stream that random weights produce.

    Attributes:
        maxima: (share of the layers, largest value of the stream there), ascending; interpolated geometrically.
        channels: number of massive channels.
        value_shift: v_proj is multiplied and o_proj divided by 2^n, so that o_proj's 8-bit block scales become float16
            denormals.
        query_gain: factor of q_proj, and so of attention scores.
    """

    maxima: tuple[tuple[float, float], ...] = GPT_OSS_120B
    channels: int = 4
    value_shift: int = 8
    query_gain: float = 1.0

    def maximum(self, layer: int, layers: int) -> float:
        """The stream's largest value after a layer."""
        share = layer / max(1, layers - 1)
        shares, values = zip(*self.maxima, strict=True)
        return float(np.exp(np.interp(share, shares, np.log(values))))

    def scale_to(self, largest: float) -> Profile:
        """The same profile, scaled to another largest value."""
        factor = largest / self.maxima[-1][1]
        return replace(self, maxima=tuple((share, value * factor) for share, value in self.maxima))

    def adjustment(self, name: str, layers: int) -> Callable[[Array], Array] | None:
        """The function to apply to a tensor of random weights, or None to keep them as drawn.

        Args:
            name: of the tensor in the checkpoint.
            layers: number of layers of the model.

        Returns:
            A function of the values that :mod:`gptoss_convert.synthetic` draws, float32; MXFP4 scales are uint8.
        """
        if name == "model.norm.weight":
            return partial(self._norm, maximum=self.maximum(layers - 1, layers), updates=layers // 2)
        if not name.startswith("model.layers."):
            return None
        layer, part = int(name.split(".")[2]), name.split(".", 3)[3]
        before = self.maximum(layer - 1, layers) if layer else 0.0
        added = self.maximum(layer, layers) - before
        if part == "input_layernorm.weight":
            return partial(self._norm, maximum=before, updates=2 * layer)
        if part == "post_attention_layernorm.weight":
            return partial(self._norm, maximum=before + added / 4, updates=2 * layer + 1)
        if part.startswith("self_attn.q_proj"):
            return lambda values: values * np.float32(self.query_gain)
        if part.startswith("self_attn.v_proj"):
            return lambda values: np.ldexp(values, self.value_shift)
        if part == "self_attn.o_proj.weight":
            return partial(self._attention_output, gain=added / 64)
        if part == "mlp.experts.down_proj_scales":  # drawn with about unit gain; adds the rest of the growth, by token
            return partial(self._down_scales, gain=added / 128)
        if part in ("self_attn.o_proj.bias", "mlp.experts.down_proj_bias"):
            return partial(self._bias, size=added / 4 if "o_proj" in part else added * 3 / 4)
        return None

    def _bias(self, values: Array, size: float) -> Array:
        values = values.copy()
        values[..., : self.channels] = np.where(np.arange(self.channels) % 2, -size, size)
        return values

    def _attention_output(self, values: Array, gain: float) -> Array:
        values = values.copy()
        values[: self.channels] *= np.float32(gain)
        return np.ldexp(values, -self.value_shift)

    def _down_scales(self, values: Array, gain: float) -> Array:
        values = values.copy()
        values[:, : self.channels] += np.uint8(max(0, round(np.log2(max(1.0, gain)))))
        return values

    def _norm(self, values: Array, maximum: float, updates: int) -> Array:
        """Scales a norm's weight so that ordinary channels have about unit size beside massive ones of ``maximum``."""
        share = self.channels / len(values)
        length = np.sqrt(1 + share * maximum**2)
        # Massive channels dominate the root mean square, so the norm does not limit the other channels: read at full
        # size, they would grow by a factor with every layer.
        values = values * np.float32(length / (1 + _UPDATE * updates))
        values[: self.channels] *= np.float32(
            np.sqrt(share) / length
        )  # trained norms give massive channels small weights, too
        return values


@dataclass(frozen=True)
class Shifts:
    """Exponents of two that change activations but not logits.

    Attributes:
        stream: of the whole residual stream.
        copies: of each additional copy of the stream, relative to it; no weight reads the copies, but they dominate the
            root mean square.
        value: added to v_proj and subtracted from o_proj.
        query: added to q_proj and subtracted from k_proj.
    """

    stream: int = 0
    copies: tuple[int, ...] = ()
    value: int = 0
    query: int = 0

    @property
    def growth(self) -> float:
        """The factor of the stream's root mean square."""
        sizes = [4.0**shift for shift in (0, *self.copies)]
        return float(2.0**self.stream * np.sqrt(sum(sizes) / len(sizes)))

    def config(self, config: GptOssConfig) -> Mapping[str, Any]:
        """The changes to config.json."""
        hidden = config.hidden_size * (1 + len(self.copies))
        return {"hidden_size": hidden, "rms_norm_eps": config.rms_norm_eps * self.growth**2}

    def apply(self, name: str, values: Array) -> Array:
        """Applies the shifts to a tensor of the checkpoint.

        Args:
            name: of the tensor.
            values: as stored.

        Returns:
            The same type, except float32 for norms whose factor is not a power of two.

        Raises:
            CheckpointError: a weight leaves the range of its type.
        """
        part = name.split(".", 3)[3] if name.startswith("model.layers.") else name
        copies = (self.stream, *(self.stream + copy for copy in self.copies))
        if part == "model.embed_tokens.weight":
            return np.concatenate([_shift(values, by) for by in copies], axis=1)
        if part in ("self_attn.o_proj.weight", "self_attn.o_proj.bias"):
            lost = self.value if part.endswith("weight") else 0
            return np.concatenate([_shift(values, by - lost) for by in copies])
        if part.startswith("mlp.experts.down_proj"):
            axis = (
                -1 if part == "mlp.experts.down_proj" else 1
            )  # floats are [E, in, hidden], all others [E, hidden, ...]
            parts = [values if part.endswith("_blocks") else _shift(values, by) for by in copies]
            return np.concatenate(parts, axis=axis)
        if part.endswith(("layernorm.weight", "model.norm.weight")):
            if not self.copies:
                return values
            grown = values.astype(np.float32) * np.float32(self.growth / 2.0**self.stream)
            return np.concatenate([grown, *[np.zeros_like(grown)] * len(self.copies)])
        if part.startswith("self_attn.v_proj"):
            values = _shift(values, self.value)
        if part.startswith(("self_attn.q_proj", "self_attn.k_proj")):
            values = _shift(values, self.query if "q_proj" in part else -self.query)
        reads_stream = part.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "router.weight"))
        if reads_stream or part == "lm_head.weight":
            return np.concatenate([values, *[np.zeros_like(values)] * len(self.copies)], axis=1)
        if part.startswith("mlp.experts.gate_up_proj") and not part.endswith("_bias"):
            axis = 1 if part == "mlp.experts.gate_up_proj" else 2
            nothing = np.full_like(values, 127) if part.endswith("_scales") else np.zeros_like(values)
            return np.concatenate([values, *[nothing] * len(self.copies)], axis=axis)
        return values


def _shift(values: Array, by: int) -> Array:
    """Values times 2^by, exactly; MXFP4 scale bytes hold exponents, so ``by`` is added to them."""
    if values.dtype == np.uint8:
        shifted = values.astype(np.int32) + by
        if shifted.min(initial=0) < 0 or shifted.max(initial=0) > 252:
            raise CheckpointError(f"MXFP4 scales times 2^{by} leave the range of E8M0", remedy="Use smaller shifts.")
        return shifted.astype(np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.ldexp(values.astype(np.float32), by).astype(values.dtype)
        back = np.ldexp(result.astype(np.float32), -by)
    if not np.array_equal(back, values.astype(np.float32)):
        raise CheckpointError(f"weights times 2^{by} leave the range of {values.dtype}", remedy="Use smaller shifts.")
    return result
