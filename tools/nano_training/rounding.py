"""Quantisation-aware training: the forward pass uses rounded weights, with straight-through gradients.

Weights are rounded to MXFP4 and bfloat16, the checkpoint's types, so the checkpoint holds exactly the trained model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

BLOCK = 32


def to_mxfp4(weight: Tensor) -> Tensor:
    """Rounds weights [..., K] to MXFP4; a block's scale is the smallest power of two that makes its peak at most 7.

    E2M1's largest value is 6. A peak between 6 and 7 rounds to 6 with an error no larger than its neighbours'.
    """
    blocks = weight.view(*weight.shape[:-1], -1, BLOCK)
    peak = blocks.abs().amax(-1, keepdim=True).clamp(min=2.0**-100)
    scale = torch.exp2(torch.ceil(torch.log2(peak / 7)))
    scaled = blocks / scale
    size = scaled.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    # torch rounds halves to even, which is the even code here, as in IEEE arithmetic
    return ((scaled / step).round() * step).clamp(-6, 6).mul(scale).flatten(-2)


class Mxfp4(nn.Module):
    """Straight-through MXFP4."""

    def forward(self, weight: Tensor) -> Tensor:
        """[..., K] → [..., K]."""
        return weight + (to_mxfp4(weight.detach()) - weight.detach())


class Bfloat16(nn.Module):
    """Straight-through bfloat16."""

    def forward(self, weight: Tensor) -> Tensor:
        """Any shape."""
        return weight + (weight.detach().bfloat16().float() - weight.detach())


def attach_rounding(model: nn.Module) -> None:
    """Rounds every parameter in the forward pass: the experts' projections to MXFP4, the rest to bfloat16."""
    for module in list(model.modules()):
        for name, _ in list(module.named_parameters(recurse=False)):
            rule = Mxfp4() if name in ("gate_up_proj", "down_proj") else Bfloat16()
            # unsafe: rounding is not invertible, so parameters cannot be assigned through it
            parametrize.register_parametrization(module, name, rule, unsafe=True)


def rounded_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters as the forward pass uses them, float32, by their original names."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for prefix, module in model.named_modules():
            if parametrize.is_parametrized(module):
                for name in module.parametrizations:
                    found[f"{prefix}.{name}"] = getattr(module, name).detach().clone()
    return found
