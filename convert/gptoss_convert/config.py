"""config.json of a gpt-oss checkpoint, as far as the graph needs it.

Knows the two forms of the rotary settings (``rope_scaling`` + ``rope_theta`` as published, ``rope_parameters`` since
transformers 5) and which dimensions the kernels accept. Reads only config.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptoss_convert.errors import CheckpointError, UnsupportedModel

_MAX_SETTING = 1e12  # below it, every step of YaRN stays within float32
_MAX_LAYERS = 1000  # gpt-oss-120b has 36
_MAX_DIMENSION = 2**31 - 1  # ONNX kernels use int32
_POSITIVE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "num_local_experts", "sliding_window", "max_position_embeddings"),
)
AttentionType = Literal["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Yarn:
    """Rotary position settings: YaRN (https://arxiv.org/abs/2309.00071), as transformers parametrises it.

    Attributes:
        theta: base of the frequencies.
        factor: context extension; 1.0: plain RoPE.
        original_max_position_embeddings: context length before the extension, in tokens.
        beta_fast: number of rotations above which a frequency is unchanged.
        beta_slow: number of rotations below which a frequency is divided by ``factor``.
        truncate: round the bounds of the ramp between the two to integers.
        attention_factor: scale of cos and sin; None: 0.1 ln(factor) + 1.
    """

    theta: float = 150000.0
    factor: float = 32.0
    original_max_position_embeddings: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = False
    attention_factor: float | None = None


@dataclass(frozen=True)
class GptOssConfig:
    """The dimensions of a gpt-oss model, with the names of config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int
    layer_types: tuple[AttentionType, ...]
    max_position_embeddings: int
    rms_norm_eps: float
    swiglu_limit: float
    rope: Yarn
    eos_token_id: int | None
    pad_token_id: int | None

    @classmethod
    def read(cls, folder: Path) -> GptOssConfig:
        """Reads and checks ``folder/config.json``.

        Raises:
            CheckpointError: it is missing or malformed.
            UnsupportedModel: another architecture, or dimensions that no kernel accepts.
        """
        file = folder / "config.json"
        try:
            raw = json.loads(file.read_text("utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{file}: missing", remedy="Give the folder of a gpt-oss checkpoint in the Hugging Face layout."
            ) from error
        except (ValueError, OSError, RecursionError) as error:
            raise CheckpointError(f"{file}: not readable as JSON ({error})", remedy="Download it again.") from error
        if not isinstance(raw, dict) or raw.get("model_type") != "gpt_oss":
            kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
            raise UnsupportedModel(
                f"{file}: model_type is {kind!r}, not 'gpt_oss'",
                remedy="This converter is for gpt-oss; for other models use Olive's own ModelBuilder pass.",
            )
        try:
            config = cls._parse(raw)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{file}: {error!r}", remedy="Use the config.json of the same revision.") from error
        config._check(file)
        return config

    @classmethod
    def _parse(cls, raw: Mapping[str, Any]) -> GptOssConfig:
        layers = _parse_int(raw, "num_hidden_layers")
        if layers > _MAX_LAYERS:
            raise ValueError(f"num_hidden_layers is {layers}")
        types = raw.get("layer_types") or [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
        return cls(
            **{name: _parse_int(raw, name) for name in _POSITIVE},
            num_experts_per_tok=int(raw.get("num_experts_per_tok") or raw["experts_per_token"]),
            layer_types=tuple(types),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-5)),
            swiglu_limit=float(raw.get("swiglu_limit", 7.0)),
            rope=_parse_yarn(raw),
            eos_token_id=_parse_token_id(raw, "eos_token_id"),
            pad_token_id=_parse_token_id(raw, "pad_token_id"),
        )

    def _check(self, file: Path) -> None:
        def refuse(why: str) -> UnsupportedModel:
            return UnsupportedModel(
                f"{file}: {why}", remedy="No kernel accepts such dimensions; see docs/conversion.md."
            )

        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise refuse(f"{name} is {getattr(self, name)}")
        if self.hidden_size % 32 or self.intermediate_size % 32:
            raise refuse("hidden_size and intermediate_size must be multiples of 32, the MXFP4 block")
        if self.num_attention_heads % self.num_key_value_heads:
            raise refuse("num_attention_heads must be a multiple of num_key_value_heads")
        if self.head_dim % 16:  # GroupQueryAttention's rotary kernel works on 16 values at a time
            raise refuse("head_dim must be a multiple of 16")
        if not 0 < self.num_experts_per_tok <= self.num_local_experts:
            raise refuse(f"num_experts_per_tok is {self.num_experts_per_tok} of {self.num_local_experts} experts")
        kinds = ("sliding_attention", "full_attention")
        if len(self.layer_types) != self.num_hidden_layers or any(kind not in kinds for kind in self.layer_types):
            raise refuse("layer_types must name sliding_attention or full_attention for every layer")
        if not (0 <= self.rms_norm_eps < _MAX_SETTING and 0 < self.swiglu_limit < math.inf):
            raise refuse(f"rms_norm_eps is {self.rms_norm_eps}, swiglu_limit {self.swiglu_limit}")

    def window(self, layer: int) -> int | None:
        """Positions that a query of this layer attends to, its own included; None: all earlier ones."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None


def _parse_int(raw: Mapping[str, Any], name: str) -> int:
    number = int(raw[name])
    if number != raw[name] or abs(number) > _MAX_DIMENSION:
        raise ValueError(f"{name} is {raw[name]!r}")
    return number


def _parse_token_id(raw: Mapping[str, Any], name: str) -> int | None:
    value = raw.get(name)
    if isinstance(value, list) and value:  # transformers allows several
        value = value[0]
    if not isinstance(value, int | None):
        raise TypeError(f"{name} is {value!r}")
    return value


def _parse_yarn(raw: Mapping[str, Any]) -> Yarn:
    yarn = _read_yarn(raw)
    betas_valid = 0 < yarn.beta_slow <= yarn.beta_fast < _MAX_SETTING
    theta_valid = 1 < yarn.theta < _MAX_SETTING and 1 <= yarn.factor < _MAX_SETTING
    context_valid = 0 < yarn.original_max_position_embeddings < _MAX_SETTING
    scale_valid = yarn.attention_factor is None or 0 < yarn.attention_factor < _MAX_SETTING
    if not (betas_valid and theta_valid and context_valid and scale_valid):
        raise ValueError(f"rotary settings out of range: {yarn}")
    return yarn


def _read_yarn(raw: Mapping[str, Any]) -> Yarn:
    settings = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(settings.get("rope_theta") or raw.get("rope_theta") or 150000.0)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind == "default":
        return Yarn(theta=theta, factor=1.0)
    if kind != "yarn":
        raise ValueError(f"rope_type {kind!r}: only yarn and default are gpt-oss's")
    factor = settings.get("attention_factor")
    return Yarn(
        theta=theta,
        factor=float(settings["factor"]),
        original_max_position_embeddings=int(settings.get("original_max_position_embeddings") or 4096),
        beta_fast=float(settings.get("beta_fast") or 32.0),
        beta_slow=float(settings.get("beta_slow") or 1.0),
        truncate=bool(settings.get("truncate", True)),
        attention_factor=None if factor is None else float(factor),
    )
