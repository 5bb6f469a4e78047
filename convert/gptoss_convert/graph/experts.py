"""What every way of emitting the experts shares: the node, their shapes, their exact values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert import mxfp4
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.config import GptOssConfig
from gptoss_convert.errors import CheckpointError
from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.graph.router import router_logits
from gptoss_convert.quantise import Quantised, quantise
from gptoss_convert.requantise import requantise, widen
from gptoss_convert.schemes import Scheme
from gptoss_convert.weights import Made, TensorSpec, assembled

Part = NDArray[Any]
Layout = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # codes of one expert, [N, K·bits/8], in another order

# Attributes of com.microsoft's MoE and QMoE: gpt-oss's clamped SwiGLU on interleaved rows, weights of the chosen
# experts by a softmax over those alone. Source: OpenAI's gpt_oss/torch/model.py, ``swiglu`` and ``MLPBlock``.
_SWIGLU: Mapping[str, Any] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.702,
    "activation_beta": 1.0,
    "normalize_routing_weights": 1,
}


def moe_node(
    g: GraphBuilder,
    op_type: str,
    layer: int,
    x: ir.Value,
    weights: Sequence[ir.Value | None],
    router: Layer = router_logits,
    **attributes: Any,
) -> ir.Value:
    """The router and com.microsoft's MoE or QMoE behind it, [batch, sequence, hidden] to the same.

    Args:
        g: the builder.
        op_type: "MoE" or "QMoE".
        layer: whose experts.
        x: normalised hidden states.
        weights: the operator's inputs after the router's logits.
        router: the piece that emits these.
        attributes: beside those that all kinds share.
    """
    return g.op(
        op_type,
        *(x, router(g, layer, x), *weights),
        domain=MICROSOFT,
        k=g.config.num_experts_per_tok,
        swiglu_limit=g.config.swiglu_limit,
        **_SWIGLU,
        **attributes,
    )


def mxfp4_parts(
    checkpoint: Checkpoint, module: str, expert: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Blocks [(E,) N, K/32, 16] and scales [(E,) N, K/32] of one projection.

    Args:
        checkpoint: one whose experts are MXFP4.
        module: such as ``model.layers.0.mlp.experts.down_proj``.
        expert: which expert; all of them by default.

    Raises:
        CheckpointError: a scale that float32 has no room for; 255 is NaN in the format.
    """
    blocks, scales = _read(checkpoint, f"{module}_blocks", expert), _read(checkpoint, f"{module}_scales", expert)
    if int(scales.max(initial=0)) > mxfp4.LARGEST_SCALE:
        raise CheckpointError(
            f"{module}_scales holds {int(scales.max())}, which is no finite scale",
            remedy="The weights are damaged: download that shard again.",
        )
    return blocks, scales


def expert_values(checkpoint: Checkpoint, module: str, expert: int | None = None) -> NDArray[np.float32]:
    """Exact weights of one projection, float32 [(experts,) N, K], whichever way the checkpoint holds them.

    Args:
        checkpoint: where from.
        module: such as ``model.layers.0.mlp.experts.down_proj``.
        expert: which expert; all of them by default.
    """
    if checkpoint.has_mxfp4_experts:
        return mxfp4.decode(*mxfp4_parts(checkpoint, module, expert))
    return np.ascontiguousarray(_read(checkpoint, module, expert).swapaxes(-1, -2).astype(np.float32))


def _read(checkpoint: Checkpoint, name: str, expert: int | None) -> NDArray[Any]:
    return checkpoint.array(name) if expert is None else checkpoint.array(name, expert, expert + 1)[0]


def quantised_expert(checkpoint: Checkpoint, module: str, expert: int, scheme: Scheme) -> Quantised:
    """One expert's projection in integer blocks; from MXFP4 without a detour where the blocks are the same.

    Args:
        checkpoint: where from.
        module: such as ``model.layers.0.mlp.experts.down_proj``.
        expert: which expert.
        scheme: int4 or int8; int8 of MXFP4's own blocks is exact.
    """
    if checkpoint.has_mxfp4_experts and scheme.block_size == mxfp4.BLOCK:
        from_codes = requantise if scheme.type == "int4" else widen
        return from_codes(*mxfp4_parts(checkpoint, module, expert))
    return quantise(expert_values(checkpoint, module, expert), bits=scheme.bits, block=scheme.block_size)


def quantised_experts(
    g: GraphBuilder,
    module: str,
    outputs: Sequence[TensorSpec],
    place: Callable[[Part, int, Part], None],
    layout: Layout | None = None,
) -> Made:
    """All experts' codes and scales of one projection in integers, several experts at a time.

    Args:
        g: the builder.
        module: such as ``model.layers.0.mlp.experts.down_proj``.
        outputs: codes and scales as they are to be stored.
        place: puts an expert's where they belong; see :func:`gptoss_convert.weights.assembled`.
        layout: puts an expert's codes in another order; they stay as they are without one.
    """

    def make(expert: int) -> Quantised:
        made = quantised_expert(g.checkpoint, module, expert, g.quantisation.experts)
        return replace(made, packed=layout(made.packed)) if layout else made

    return assembled(outputs, range(g.config.num_local_experts), make, place)


def projection_tensors(checkpoint: Checkpoint, module: str) -> tuple[str, ...]:
    """The checkpoint's tensors that hold one projection's weights."""
    return (f"{module}_blocks", f"{module}_scales") if checkpoint.has_mxfp4_experts else (module,)


def projection_shape(config: GptOssConfig, name: str) -> tuple[int, int, int]:
    """[E, N, K] of "gate_up_proj" or "down_proj"."""
    wide = (config.num_local_experts, 2 * config.intermediate_size, config.hidden_size)
    return wide if name == "gate_up_proj" else (config.num_local_experts, config.hidden_size, config.intermediate_size)
