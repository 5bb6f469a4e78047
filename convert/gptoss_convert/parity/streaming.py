"""gpt-oss in float32, one layer at a time: the reference that parity is measured against.

Written from the published mathematics, independently of this project's graphs: RMSNorm, rotary positions by YaRN
(https://arxiv.org/abs/2309.00071), grouped-query attention with one sink per head and sliding windows, softmax over the
chosen router logits, clamped SwiGLU, MXFP4 (OCP Microscaling Formats v1.0). Source: OpenAI's gpt_oss/torch/model.py.

All tokens of all sequences go through a layer before the next layer's weights are read. Memory holds the tokens' hidden
states, one dense matrix or one expert as float32, and the attention scores of a block of queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.config import GptOssConfig, Yarn
from gptoss_convert.errors import CheckpointError
from gptoss_convert.mxfp4 import VALUES

# Called with (layer, name, values); see ``compute_final_states``.
Observe = Callable[[int, str, Tensor], None]

_ALPHA = 1.702  # of SwiGLU's sigmoid
_SCORES = 32 << 20  # attention scores in memory at a time: 128 MB
_QUERIES = 128  # maximum queries in a block
_HEAD_ROWS = 16384  # rows of lm_head in memory at a time: 189 MB at 2,880 columns
_CODES = torch.arange(256)
_PAIRS = torch.stack([torch.from_numpy(VALUES)[_CODES & 15], torch.from_numpy(VALUES)[_CODES >> 4]], dim=-1)
_POWERS = torch.tensor([*(2.0 ** (byte - 127) for byte in range(255)), math.nan])[:, None]  # by scale byte


@torch.inference_mode()
def compute_final_states(
    checkpoint: Checkpoint,
    sequences: Sequence[Sequence[int]],
    *,
    observe: Observe | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Computes the input of lm_head: the hidden states after the final norm.

    Args:
        checkpoint: with MXFP4 or float experts.
        sequences: token ids; each sequence starts at position 0.
        observe: called with intermediate values, float32, with the tokens of all sequences concatenated in the first
            axis. It may keep the values but must not change them. ``hidden_states.0`` is the embedding (with layer 0)
            and ``hidden_states.K`` the residual stream after K layers. Within a layer: ``attention_input`` (after the
            norm), ``query`` and ``key`` (rotated) and ``value`` [tokens, heads, head_dim], ``attention_scores_max``
            [tokens, heads] (scaled, without the sink), ``attention_output`` (before o_proj), ``attention_update``
            (after o_proj), ``attention_residual``, ``moe_input`` (after the norm), ``router_logits``, ``moe_output``.
            Several times per layer, each time with one expert's tokens: ``expert_gate_up`` (before the clamp),
            ``expert_hidden`` (after SwiGLU), ``expert_output`` (before the routing weight).
        progress: called with (layers done, layers).

    Returns:
        float32 [tokens, hidden], one for each sequence.

    Raises:
        CheckpointError: a weight cannot be read, or a hidden state is not finite.
        ValueError: a sequence is empty, or an id is outside the vocabulary.
    """
    config, lengths = checkpoint.config, [len(sequence) for sequence in sequences]
    flat = torch.tensor([token for sequence in sequences for token in sequence])
    if not lengths or min(lengths) < 1 or flat.min() < 0 or flat.max() >= config.vocab_size:
        raise ValueError(f"sequences need at least one token and ids below {config.vocab_size}; lengths {lengths}")
    notify: Observe = observe or (lambda layer, name, values: None)
    x = _embed(checkpoint, flat)
    notify(0, "hidden_states.0", x)
    cos_sin = rotary_tables(config.rope, config.head_dim, max(lengths))
    for layer in range(config.num_hidden_layers):
        weights = _Layer(checkpoint, layer)
        x = x + _attention(config, weights, x, lengths, cos_sin, notify)
        notify(layer, "attention_residual", x)
        x = x + _experts(config, weights, x, notify)
        if not x.isfinite().all():
            raise CheckpointError(
                f"{checkpoint.path}: hidden states are not finite after layer {layer} in float32",
                remedy="Check the checkpoint's weights for NaN and infinity.",
            )
        notify(layer, f"hidden_states.{layer + 1}", x)
        if progress:
            progress(layer + 1, config.num_hidden_layers)
    x = rms_norm(x, _tensor(checkpoint, "model.norm.weight"), config.rms_norm_eps)
    return list(torch.split(x, lengths))


@torch.inference_mode()
def compute_logits(checkpoint: Checkpoint, states: Tensor) -> Tensor:
    """Multiplies final hidden states by lm_head, a block of its rows at a time.

    Args:
        checkpoint: the checkpoint.
        states: from :func:`compute_final_states`, float32 [tokens, hidden].

    Returns:
        float32 [tokens, vocab].
    """
    vocab = checkpoint.config.vocab_size
    logits = torch.empty(len(states), vocab)
    for start in range(0, vocab, _HEAD_ROWS):
        end = min(start + _HEAD_ROWS, vocab)
        logits[:, start:end] = states @ _tensor(checkpoint, "lm_head.weight", start, end).T
    return logits


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) · weight, over the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotary_tables(yarn: Yarn, head_dim: int, positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin by YaRN, float32 [positions, head_dim/2], multiplied by the attention factor."""
    periods = yarn.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    frequencies, factor = 1 / periods, yarn.attention_factor
    if factor is None:
        factor = 0.1 * math.log(yarn.factor) + 1
    if yarn.factor > 1:

        def dimension(turns: float) -> float:
            """The dimension of a head that makes this many turns within the original context."""
            period = yarn.original_max_position_embeddings / (2 * math.pi * turns)
            return head_dim / 2 * math.log(period) / math.log(yarn.theta)

        low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
        if yarn.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = (high - low) or 0.001
        slow = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
        frequencies = frequencies / yarn.factor * slow + frequencies * (1 - slow)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the two halves of every head by the angles of its position; x is [tokens, heads, head_dim]."""
    cos, sin = (table[: len(x), None] for table in cos_sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, window: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Causal attention of one sequence, a block of queries at a time.

    Args:
        query: [tokens, heads, head_dim].
        key: [tokens, kv_heads, head_dim]; each key head serves heads / kv_heads query heads.
        value: as ``key``.
        sinks: [heads], an additional logit in the softmax, without a value.
        window: positions that a query attends to, its own included; None: its own and all before it.

    Yields:
        The output, [block, heads, head_dim], and the largest score of every query, [block, heads].
    """
    tokens, heads, head_dim = query.shape
    groups = key.shape[1]
    sinks = sinks.view(groups, -1, 1, 1)
    keys, values = key.permute(1, 2, 0), value.transpose(0, 1)  # [kv, head_dim, tokens] and [kv, tokens, head_dim]
    start = 0
    while start < tokens:
        first = 0 if window is None else max(0, start - window + 1)
        width = min(tokens, start + _QUERIES) - first  # keys, at most
        end = min(tokens, start + max(1, min(_QUERIES, _SCORES // (heads * width))))
        shape = (groups, heads // groups, end - start, -1)
        block = query[start:end].transpose(0, 1).reshape(groups, -1, head_dim)  # [kv, group · block, head_dim]
        scores = (block @ keys[..., first:end]).view(shape).div_(math.sqrt(head_dim))
        behind = torch.arange(start, end)[:, None] - torch.arange(first, end)
        unseen = behind < 0 if window is None else (behind < 0) | (behind >= window)
        scores.masked_fill_(unseen, -torch.inf)
        largest = scores.amax(-1, keepdim=True)
        base = torch.maximum(largest, sinks)
        scores.sub_(base).exp_()
        total = scores.sum(-1, keepdim=True) + (sinks - base).exp()
        mixed = (scores.flatten(1, 2) @ values[:, first:end]).view(shape) / total
        # back to [tokens, heads]
        yield mixed.flatten(0, 1).transpose(0, 1), largest.flatten(0, 1).squeeze(-1).T
        start = end


def swiglu(x: Tensor, limit: float) -> Tensor:
    """Clamped SwiGLU of interleaved gate and up values, [tokens, 2 · inner] → [tokens, inner]."""
    gate, up = x[:, ::2].clamp(max=limit), x[:, 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(_ALPHA * gate) * (up + 1)


class _Layer:
    """One layer's weights, read at each use and not kept in memory."""

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        self.index = layer
        self.window = checkpoint.config.window(layer)
        self._checkpoint = checkpoint

    def __call__(self, name: str) -> Tensor:
        return _tensor(self._checkpoint, f"model.layers.{self.index}.{name}")

    def linear(self, name: str, x: Tensor) -> Tensor:
        """x times a matrix, plus its bias."""
        return functional.linear(x, self(f"{name}.weight"), self(f"{name}.bias"))

    def expert(self, name: str, index: int, x: Tensor) -> Tensor:
        """x times one expert's matrix, plus its bias."""
        source = f"model.layers.{self.index}.mlp.experts.{name}"
        bias = _tensor(self._checkpoint, f"{source}_bias", index, index + 1)[0]
        if not self._checkpoint.has_mxfp4_experts:  # stored [in, out]
            return torch.addmm(bias, x, _tensor(self._checkpoint, source, index, index + 1)[0])
        blocks, scales = (
            self._checkpoint.array(f"{source}_{part}", index, index + 1)[0] for part in ("blocks", "scales")
        )
        return functional.linear(x, decode_mxfp4(torch.from_numpy(blocks), torch.from_numpy(scales)), bias)


def decode_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Decodes packed MXFP4 codes exactly.

    Args:
        blocks: uint8 [rows, columns/32, 16], two codes per byte, the low nibble first.
        scales: uint8 [rows, columns/32], exponents biased by 127.

    Returns:
        float32 [rows, columns].
    """
    values = functional.embedding(blocks.int(), _PAIRS).flatten(-2)  # [rows, columns/32, 32]
    values.mul_(functional.embedding(scales.int(), _POWERS))
    return values.flatten(-2)


def _attention(
    config: GptOssConfig,
    weights: _Layer,
    x: Tensor,
    lengths: list[int],
    cos_sin: tuple[Tensor, Tensor],
    notify: Observe,
) -> Tensor:
    """Attention's update of the residual stream, float32 [tokens, hidden]."""
    layer, head_dim = weights.index, config.head_dim
    x = rms_norm(x, weights("input_layernorm.weight"), config.rms_norm_eps)
    notify(layer, "attention_input", x)
    query, key, value = (weights.linear(f"self_attn.{n}_proj", x).view(len(x), -1, head_dim) for n in "qkv")
    query, key = (torch.cat([rotate(one, cos_sin) for one in torch.split(each, lengths)]) for each in (query, key))
    for name, values in (("query", query), ("key", key), ("value", value)):
        notify(layer, name, values)
    sinks = weights("self_attn.sinks")
    parts = zip(*(torch.split(each, lengths) for each in (query, key, value)), strict=True)
    blocks = [block for q, k, v in parts for block in attend(q, k, v, sinks, weights.window)]
    notify(layer, "attention_scores_max", torch.cat([largest for _, largest in blocks]))
    x = torch.cat([output for output, _ in blocks]).flatten(1)
    notify(layer, "attention_output", x)
    x = weights.linear("self_attn.o_proj", x)
    notify(layer, "attention_update", x)
    return x


def _experts(config: GptOssConfig, weights: _Layer, x: Tensor, notify: Observe) -> Tensor:
    """The experts' update of the residual stream, float32 [tokens, hidden]; experts without tokens are not read."""
    layer = weights.index
    x = rms_norm(x, weights("post_attention_layernorm.weight"), config.rms_norm_eps)
    notify(layer, "moe_input", x)
    router_logits = weights.linear("mlp.router", x)
    notify(layer, "router_logits", router_logits)
    largest, chosen = router_logits.topk(config.num_experts_per_tok, dim=-1)
    shares = largest.softmax(-1)
    result = torch.zeros_like(x)
    for expert in torch.unique(chosen).tolist():
        tokens, slot = (chosen == expert).nonzero(as_tuple=True)
        y = weights.expert("gate_up_proj", expert, x[tokens])
        notify(layer, "expert_gate_up", y)
        y = swiglu(y, config.swiglu_limit)
        notify(layer, "expert_hidden", y)
        y = weights.expert("down_proj", expert, y)
        notify(layer, "expert_output", y)
        result.index_add_(0, tokens, y * shares[tokens, slot, None])
    notify(layer, "moe_output", result)
    return result


def _embed(checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """The embedding rows of these tokens; other rows are not read."""
    used, where = torch.unique(tokens, return_inverse=True)
    rows = [_tensor(checkpoint, "model.embed_tokens.weight", token, token + 1) for token in used.tolist()]
    return torch.cat(rows)[where]


def _tensor(checkpoint: Checkpoint, name: str, start: int = 0, end: int | None = None) -> Tensor:
    """A tensor, or some of its rows, as float32."""
    stored = checkpoint.array(name, start, end)
    if checkpoint.tensors[name].dtype == "BF16":  # numpy has no bfloat16
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(stored).float()
