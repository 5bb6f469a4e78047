"""What every way of emitting the experts shares: the node, their shapes, their exact values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert import mxfp4, row_scaling
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.config import GptOssConfig
from gptoss_convert.errors import CheckpointError
from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.graph.precision import factors_spec, keeps_rows, scale_product, to_graph_type
from gptoss_convert.graph.router import router_logits
from gptoss_convert.quantise import QuantisedMatrix, quantise
from gptoss_convert.requantise import requantise, widen
from gptoss_convert.schemes import Scheme
from gptoss_convert.weights import RecipeResult, TensorSpec, quantise_parts

Part = NDArray[Any]
Layout = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # codes of one expert, [N, K·bits/8], in another order

_PRODUCT = (
    32768.0  # that a product in float16 may come to: half of what it holds, for codes beyond the values they stand for
)

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
    """The router and com.microsoft's MoE or QMoE behind it, float32 [batch, sequence, hidden] to the same.

    Args:
        g: the builder.
        op_type: "MoE" or "QMoE".
        layer: whose experts.
        x: normalised hidden states.
        weights: the operator's inputs after the router's logits.
        router: the piece that emits these.
        attributes: beside those that all kinds share.
    """
    narrow = g.watch("experts_input", to_graph_type(g, x))
    mixed = g.op(
        op_type,
        *(narrow, router(g, layer, x), *weights),
        domain=MICROSOFT,
        k=g.config.num_experts_per_tok,
        swiglu_limit=g.config.swiglu_limit,
        **_SWIGLU,
        **attributes,
    )
    if keeps_rows(g):
        return mixed
    return scale_product(g, g.watch("experts_product", mixed), down_factors(g, layer))


@functools.lru_cache(maxsize=2)  # codes, biases and factors of a layer ask one after the other
def down_exponents(checkpoint: Checkpoint, layer: int) -> row_scaling.Exponents:
    """Exponents of down_proj's rows, int32 [hidden], that keep every expert's product within float16.

    What is multiplied with down_proj is bounded, by swiglu's clamp: at most limit · (limit + 1). So is then a product,
    weighted by routing or not, whatever the activations. All experts of a layer share a row's exponent, since one
    product may sum over them.
    """
    config, module = checkpoint.config, f"model.layers.{layer}.mlp.experts.down_proj"
    if checkpoint.has_mxfp4_experts:
        steps = mxfp4_scales(checkpoint, module).max(axis=(0, 2)).astype(np.int32) - 127
        largest = np.ldexp(np.abs(mxfp4.VALUES).max().astype(np.float64), steps)
    else:
        experts = range(config.num_local_experts)
        each = [np.abs(expert_values(checkpoint, module, expert)).max(axis=1) for expert in experts]
        largest = np.max(each, axis=0).astype(np.float64)
    bias = np.abs(checkpoint.array(f"{module}_bias").astype(np.float64)).max(axis=0)
    active = config.swiglu_limit * (config.swiglu_limit + 1)
    return row_scaling.compute_exponents((config.intermediate_size * active * largest + bias) / _PRODUCT)


def down_factors(g: GraphBuilder, layer: int) -> ir.Value:
    """Declares what down_proj's product is multiplied by in a float16 graph, float32 [hidden]."""
    spec = factors_spec(f"model.layers.{layer}.mlp.experts.down_proj", g.config.hidden_size)

    def make() -> RecipeResult:
        return RecipeResult([row_scaling.compute_factors(down_exponents(g.checkpoint, layer))])

    return g.weights("experts", "float32", [spec], make)[0]


def row_exponents(g: GraphBuilder, layer: int, name: str) -> row_scaling.Exponents | None:
    """Exponents of a projection's rows; None where rows are stored as they are."""
    if keeps_rows(g) or name != "down_proj":
        return None
    return down_exponents(g.checkpoint, layer)


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
    return _read(checkpoint, f"{module}_blocks", expert), mxfp4_scales(checkpoint, module, expert)


def mxfp4_scales(checkpoint: Checkpoint, module: str, expert: int | None = None) -> NDArray[np.uint8]:
    """Scales [(E,) N, K/32] of one projection; arguments and errors as for :func:`mxfp4_parts`."""
    scales: NDArray[np.uint8] = _read(checkpoint, f"{module}_scales", expert)
    if int(scales.max(initial=0)) > mxfp4.LARGEST_SCALE:
        raise CheckpointError(
            f"{module}_scales holds {int(scales.max())}, which is no finite scale",
            remedy="The weights are damaged: download that shard again.",
        )
    return scales


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


def quantised_expert(checkpoint: Checkpoint, module: str, expert: int, scheme: Scheme) -> QuantisedMatrix:
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
    layer: int,
    name: str,
    outputs: Sequence[TensorSpec],
    place: Callable[[Part, int, Part], None],
    layout: Layout | None = None,
) -> RecipeResult:
    """All experts' codes and scales of one projection in integers, several experts at a time.

    Args:
        g: the builder.
        layer: whose experts.
        name: "gate_up_proj" or "down_proj".
        outputs: codes and scales as they are to be stored.
        place: puts an expert's where they belong; see :func:`gptoss_convert.weights.quantise_parts`.
        layout: puts an expert's codes in another order; they stay as they are without one.
    """

    module, exponents = f"model.layers.{layer}.mlp.experts.{name}", row_exponents(g, layer, name)

    def make(expert: int) -> QuantisedMatrix:
        made = quantised_expert(g.checkpoint, module, expert, g.quantisation.experts)
        if exponents is not None:
            made = row_scaling.scale_quantised(made, exponents)
        return replace(made, packed=layout(made.packed)) if layout else made

    return quantise_parts(outputs, range(g.config.num_local_experts), make, place)


def projection_tensors(checkpoint: Checkpoint, module: str) -> tuple[str, ...]:
    """The checkpoint's tensors that hold one projection's weights."""
    return (f"{module}_blocks", f"{module}_scales") if checkpoint.has_mxfp4_experts else (module,)


def projection_shape(config: GptOssConfig, name: str) -> tuple[int, int, int]:
    """[E, N, K] of "gate_up_proj" or "down_proj"."""
    wide = (config.num_local_experts, 2 * config.intermediate_size, config.hidden_size)
    return wide if name == "gate_up_proj" else (config.num_local_experts, config.hidden_size, config.intermediate_size)
