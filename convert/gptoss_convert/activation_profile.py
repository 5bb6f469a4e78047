"""How large activations get in real gpt-oss checkpoints, and checkpoints that behave like them.

Trained checkpoints carry a few massive channels in the residual stream, grown layer by layer, and weights so small that
their block scales are float16 denormals; nano and plain random weights stay in a comfortable range. There are two ways
to the same:

    Profile    random weights that are drawn so (synthetic.write_checkpoint); right answers are a reference's
    Shifts     any checkpoint, nano included, rewritten without changing one right answer (synthetic.amplify)

RMSNorm divides by the stream's length, so what leaves answers alone is what scales that length by a constant: a factor
on the whole stream, and further copies of it that nobody reads. Beside these, attention does not see a factor that
v_proj gains and o_proj loses, or q_proj gains and k_proj loses. All are powers of two: exact in bfloat16 and MXFP4.

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
# Largest value of the residual stream of gpt-oss-120b, by the share of its 36 layers behind: after layer 0, at layer
# 6, at layer 34, and after the last addition.
GPT_OSS_120B: tuple[tuple[float, float], ...] = ((0.0, 35.0), (0.17, 10_500.0), (0.97, 45_344.0), (1.0, 92_580.0))
_UPDATE = 0.6  # by how much the other channels grow with each update, in units of what they begin with


@dataclass(frozen=True)
class Profile:
    """What random weights make of the residual stream.

    Attributes:
        maxima: (share of the layers, largest value of the stream there), ascending; between them it grows
            geometrically.
        channels: how many channels are massive.
        value_shift: v_proj is multiplied by 2^n and o_proj divided by it: 8-bit block scales of o_proj become float16
            denormals.
        query_gain: q_proj is multiplied by it, and so are attention's scores.
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

    def reaching(self, largest: float) -> Profile:
        """The same growth, to another largest value."""
        factor = largest / self.maxima[-1][1]
        return replace(self, maxima=tuple((share, value * factor) for share, value in self.maxima))

    def adjustment(self, name: str, layers: int) -> Callable[[Array], Array] | None:
        """What becomes of a tensor of random weights; None: it stays as it is drawn.

        Args:
            name: of the tensor in the checkpoint.
            layers: of the model.

        Returns:
            A function of its values as :mod:`gptoss_convert.synthetic` draws them, float32; MXFP4's scales as bytes.
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
        if part == "mlp.experts.down_proj_scales":  # about unit gain as drawn: the rest of the growth, by the token
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
        """A norm's weight that reads the other channels at about unit size beside channels as large as ``maximum``."""
        share = self.channels / len(values)
        length = np.sqrt(1 + share * maximum**2)
        # Massive channels set the length, so nothing else normalises the rest: read at full size, they would grow by a
        # factor a layer.
        values = values * np.float32(length / (1 + _UPDATE * updates))
        values[: self.channels] *= np.float32(np.sqrt(share) / length)  # as trained norms do: massive, and hardly read
        return values


@dataclass(frozen=True)
class Shifts:
    """Powers of two that change activations and no answer.

    Attributes:
        stream: on the whole residual stream.
        copies: on each further copy of the stream; nobody reads them, and the stream's length is mostly theirs.
        value: that v_proj gains and o_proj loses.
        query: that q_proj gains and k_proj loses.
    """

    stream: int = 0
    copies: tuple[int, ...] = ()
    value: int = 0
    query: int = 0

    @property
    def growth(self) -> float:
        """What the stream's root mean square is multiplied by."""
        sizes = [4.0**shift for shift in (0, *self.copies)]
        return float(2.0**self.stream * np.sqrt(sum(sizes) / len(sizes)))

    def config(self, config: GptOssConfig) -> Mapping[str, Any]:
        """What changes in config.json."""
        hidden = config.hidden_size * (1 + len(self.copies))
        return {"hidden_size": hidden, "rms_norm_eps": config.rms_norm_eps * self.growth**2}

    def apply(self, name: str, values: Array) -> Array:
        """A tensor of the checkpoint with the shifts in it.

        Args:
            name: of the tensor.
            values: as stored.

        Returns:
            The same type; norms that have to grow by no power of two are float32.

        Raises:
            CheckpointError: a weight leaves its type's range.
        """
        part = name.split(".", 3)[3] if name.startswith("model.layers.") else name
        copies = (self.stream, *(self.stream + copy for copy in self.copies))
        if part == "model.embed_tokens.weight":
            return np.concatenate([_shift(values, by) for by in copies], axis=1)
        if part in ("self_attn.o_proj.weight", "self_attn.o_proj.bias"):
            lost = self.value if part.endswith("weight") else 0
            return np.concatenate([_shift(values, by - lost) for by in copies])
        if part.startswith("mlp.experts.down_proj"):
            axis = -1 if part == "mlp.experts.down_proj" else 1  # floats are [E, in, hidden], all else [E, hidden, ...]
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
    """Values times 2^by, exactly; MXFP4's scale bytes by adding to them."""
    if values.dtype == np.uint8:
        shifted = values.astype(np.int32) + by
        if shifted.min(initial=0) < 0 or shifted.max(initial=0) > 252:
            raise CheckpointError(f"MXFP4 scales times 2^{by} leave their range", remedy="Use smaller shifts.")
        return shifted.astype(np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.ldexp(values.astype(np.float32), by).astype(values.dtype)
        back = np.ldexp(result.astype(np.float32), -by)
    if not np.array_equal(back, values.astype(np.float32)):
        raise CheckpointError(f"weights times 2^{by} leave the range of {values.dtype}", remedy="Use smaller shifts.")
    return result
