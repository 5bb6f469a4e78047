"""gpt-oss in torch, small enough to train on two CPU cores.

Parameters are named as in openai/gpt-oss-20b's checkpoint. The model works on token classes: one for each used token,
and a last one that stands for all other tokens.
Source: https://github.com/openai/gpt-oss, gpt_oss/torch/model.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from gptoss_runtime.harmony_tokens import VOCAB_SIZE
from tools.nano_training.batch import Batch


@dataclass(frozen=True)
class NanoConfig:
    """Dimensions, named as in config.json; the defaults are nano's."""

    hidden_size: int = 128
    intermediate_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    num_key_value_heads: int = 2
    head_dim: int = 32
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    sliding_window: int = 32
    rope_theta: float = 150000.0
    rope_factor: float = 8.0
    original_max_position_embeddings: int = 512
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    rms_norm_eps: float = 1e-5
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    vocab_size: int = VOCAB_SIZE


def rotary_tables(config: NanoConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin by YaRN (https://arxiv.org/abs/2309.00071), float32 [..., head_dim / 2], at the given positions."""
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-torch.arange(half, dtype=torch.float32) / half)

    def dimension(rotations: float) -> float:
        length = config.original_max_position_embeddings / (rotations * 2 * math.pi)
        return half * math.log(length) / math.log(config.rope_theta)

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    ramp = ((torch.arange(half) - low) / (high - low)).clamp(0, 1)
    frequency = frequency / config.rope_factor * ramp + frequency * (1 - ramp)
    angles = positions[..., None].float() * frequency
    concentration = 0.1 * math.log(config.rope_factor) + 1
    return angles.cos() * concentration, angles.sin() * concentration


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the two halves of every head of x [N, heads, head_dim] by tables [N, head_dim / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    """gpt-oss's clamped SwiGLU of interleaved gate and up values, [..., 2I] → [..., I]."""
    gate, up = x.view(*x.shape[:-1], -1, 2).unbind(-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a weight."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.weight = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] → [..., H]."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Grouped-query attention with a learned sink per head: a logit in the softmax without a value."""

    def __init__(self, config: NanoConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.sliding = layer % 2 == 0
        self.groups = config.num_attention_heads // config.num_key_value_heads
        width = config.num_attention_heads * config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width)
        self.k_proj = nn.Linear(config.hidden_size, narrow)
        self.v_proj = nn.Linear(config.hidden_size, narrow)
        self.o_proj = nn.Linear(width, config.hidden_size)
        self.sinks = nn.Parameter(torch.zeros(config.num_attention_heads))

    def forward(self, x: Tensor, batch: Batch, cos: Tensor, sin: Tensor) -> Tensor:
        """[N, H] → [N, H] over the flat tokens of a batch."""
        heads = (len(x), -1, self.config.head_dim)
        q = rotate(self.q_proj(x).view(heads), cos, sin)
        k = rotate(self.k_proj(x).view(heads), cos, sin)
        v = self.v_proj(x).view(heads)
        prefix_q, prefix_k, prefix_v = (_gather_rows(t, batch.prefixes.index) for t in (q, k, v))
        turn_q, turn_k, turn_v = (_gather_rows(t, batch.turns.index) for t in (q, k, v))
        shared = batch.tails if self.sliding else batch.prefixes  # a window reaches only the end of a prefix
        share = len(turn_q) // len(prefix_q)  # turns per prefix
        turn_k = torch.cat((_gather_rows(k, shared.index).repeat_interleave(share, 0), turn_k), dim=1)
        turn_v = torch.cat((_gather_rows(v, shared.index).repeat_interleave(share, 0), turn_v), dim=1)
        prefix_mask, turn_mask = batch.masks(self.sliding)
        prefix = self._attend(prefix_q, prefix_k, prefix_v, prefix_mask)[batch.prefixes.valid]
        turn = self._attend(turn_q, turn_k, turn_v, turn_mask)[batch.turns.valid]
        return torch.as_tensor(self.o_proj(torch.cat((prefix, turn))))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q [R, Q, heads, D], k and v [R, K, kv heads, D], mask [R, 1, Q, K + 1] → [R, Q, heads * D].

        The sink is an additional key, so that fused attention can be used: an additional dimension is 1 in every query,
        the sink's logit in that key and 0 in all other keys. The sink's value is 0.
        """
        rows, size = len(q), self.config.head_dim
        k, v = (t.repeat_interleave(self.groups, dim=2) for t in (k, v))
        sink = functional.pad(self.sinks[:, None] * size**0.5, (size, 0)).expand(rows, 1, -1, -1)
        q = functional.pad(q, (0, 1), value=1.0)
        k = torch.cat((functional.pad(k, (0, 1)), sink), dim=1)
        v = functional.pad(v, (0, 1, 0, 0, 0, 1))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=size**-0.5)
        return out[..., :size].transpose(1, 2).flatten(2)


def _gather_rows(flat: Tensor, index: Tensor) -> Tensor:
    """flat [N, heads, D] at index [R, L] → [R, L, heads, D]; index_select's gradient is faster than indexing's."""
    return flat.index_select(0, index.flatten()).view(*index.shape, *flat.shape[1:])


class Router(nn.Module):
    """The router of one layer."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(config.num_local_experts, config.hidden_size) * 0.05)
        self.bias = nn.Parameter(torch.zeros(config.num_local_experts))

    def forward(self, x: Tensor) -> Tensor:
        """[N, H] → logits [N, E]."""
        return functional.linear(x, self.weight, self.bias)


class Experts(nn.Module):
    """The experts' two projections; rows of gate and up are interleaved."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        experts, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * inner, hidden) * hidden**-0.5)
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(experts, 2 * inner))
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, inner) * (0.25 * inner**-0.5))
        self.down_proj_bias = nn.Parameter(torch.zeros(experts, hidden))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum over the chosen experts: x [N, H], chosen [N, k], weights [N, k] → [N, H].

        Each expert computes only its own tokens.
        """
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.config.num_local_experts).tolist()
        parameters = (self.gate_up_proj, self.gate_up_proj_bias, self.down_proj, self.down_proj_bias)
        tokens = x.index_select(0, order // chosen.shape[1]).split(counts)  # type: ignore[no-untyped-call]
        outputs = []
        # unbind, not indexing: each indexing's gradient is a tensor of zeros as large as all experts together
        for mine, up, up_bias, down, down_bias in zip(tokens, *(p.unbind() for p in parameters), strict=True):
            inner = swiglu(functional.linear(mine, up, up_bias), self.config.swiglu_alpha, self.config.swiglu_limit)
            outputs.append(functional.linear(inner, down, down_bias))
        restored = torch.cat(outputs).index_select(0, order.argsort()).view(*chosen.shape, -1)
        return (restored * weights[..., None]).sum(1)


class MLP(nn.Module):
    """Mixture of experts."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.router = Router(config)
        self.experts = Experts(config)
        self.balance = torch.zeros(())  # of the last forward pass; 1 if all experts are used equally

    def forward(self, x: Tensor) -> Tensor:
        """[N, H] → [N, H]."""
        logits = self.router(x)
        values, chosen = logits.topk(self.top_k, dim=-1)
        used = torch.bincount(chosen.flatten(), minlength=logits.shape[1]) / chosen.numel()
        self.balance = (used * logits.softmax(-1).mean(0)).sum() * logits.shape[1]
        return torch.as_tensor(self.experts(x, chosen, values.softmax(-1)))


class Layer(nn.Module):
    """Attention, then experts, each on the normalised residual stream."""

    def __init__(self, config: NanoConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config)
        self.post_attention_layernorm = RMSNorm(config)

    def forward(self, x: Tensor, batch: Batch, cos: Tensor, sin: Tensor) -> Tensor:
        """[N, H] → [N, H]."""
        x = x + self.self_attn(self.input_layernorm(x), batch, cos, sin)
        return x + torch.as_tensor(self.mlp(self.post_attention_layernorm(x)))


class Embedding(nn.Module):
    """One row per class."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, size) * 0.3)


class Backbone(nn.Module):
    """Everything but the head; a module of its own so that parameters get the checkpoint's names."""

    def __init__(self, config: NanoConfig, classes: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(classes, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)


class Nano(nn.Module):
    """The language model over ``classes`` token classes; the last class is "any other token"."""

    def __init__(self, config: NanoConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.others = math.log(config.vocab_size - (classes - 1))
        self.model = Backbone(config, classes)
        self.lm_head = Embedding(classes, config.hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """Logits, float32 [len(batch.asked), classes], at the positions in ``batch.asked``.

        ln(number of other tokens) is added to the last class. The softmax is then exactly the softmax over the full
        vocabulary in which every other token has this row.
        """
        cos, sin = rotary_tables(self.config, batch.positions)
        x = functional.embedding(batch.tokens, self.model.embed_tokens.weight)
        for layer in self.model.layers:
            x = layer(x, batch, cos, sin)
        logits = self.model.norm(x.index_select(0, batch.asked)) @ self.lm_head.weight.T
        return torch.cat((logits[:, :-1], logits[:, -1:] + self.others), dim=-1)

    def imbalance(self) -> Tensor:
        """How unevenly the last forward pass used the experts, differentiable; 1 if equally."""
        return torch.stack([cast(Layer, layer).mlp.balance for layer in self.model.layers]).mean()
