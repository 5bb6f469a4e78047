"""What all ways of emitting the experts share: names and shapes, exact weights, quantisation, the fused node."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert import mxfp4, row_scaling
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.config import GptOssConfig
from gptoss_convert.errors import CheckpointError
from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.graph.precision import factors_spec, scale_product, stores_rows_unscaled, to_graph_type
from gptoss_convert.graph.router import router_logits
from gptoss_convert.quantise import QuantisedMatrix, quantise
from gptoss_convert.requantise import requantise, widen
from gptoss_convert.schemes import Scheme
from gptoss_convert.weights import RecipeResult, TensorSpec, quantise_parts

Part = NDArray[Any]
Layout = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # reorders one expert's codes, [N, K·bits/8]

ProjectionName = Literal["gate_up_proj", "down_proj"]
GATE_UP: ProjectionName = "gate_up_proj"
DOWN: ProjectionName = "down_proj"

# The largest product allowed in float16: half of its range, since a code may stand for more than the exact value.
_LARGEST_PRODUCT = 32768.0

# Attributes of com.microsoft's MoE and QMoE: gpt-oss's clamped SwiGLU on interleaved gate and up rows, and routing
# weights by a softmax over the chosen experts alone. Source: OpenAI's gpt_oss/torch/model.py, ``swiglu``, ``MLPBlock``.
_SWIGLU: Mapping[str, Any] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.702,
    "activation_beta": 1.0,
    "normalize_routing_weights": 1,
}


class Projection(NamedTuple):
    """One projection's quantised weights in the graph, in the order in which fused operators take them.

    Attributes:
        codes: packed, uint8.
        scales: one for each block of codes.
        bias: one for each row.
    """

    codes: ir.Value
    scales: ir.Value
    bias: ir.Value


def moe_node(
    g: GraphBuilder,
    op_type: str,
    layer: int,
    x: ir.Value,
    weights: Sequence[ir.Value | None],
    router: Layer = router_logits,
    **attributes: Any,
) -> ir.Value:
    """Emits com.microsoft's MoE or QMoE: routing, both projections, SwiGLU and the weighted sum over experts.

    Args:
        g: the builder.
        op_type: "MoE" or "QMoE".
        layer: the layer.
        x: normalised hidden states, float32 [batch, sequence, hidden].
        weights: the operator's inputs after the router's logits.
        router: emits these logits.
        attributes: those that MoE and QMoE don't share.

    Returns:
        float32 [batch, sequence, hidden].
    """
    experts_input = g.watch("experts_input", to_graph_type(g, x))
    output = g.op(
        op_type,
        *(experts_input, router(g, layer, x), *weights),
        domain=MICROSOFT,
        k=g.config.num_experts_per_tok,
        swiglu_limit=g.config.swiglu_limit,
        **_SWIGLU,
        **attributes,
    )
    if stores_rows_unscaled(g):
        return output
    return scale_product(g, g.watch("experts_product", output), declare_down_factors(g, layer))


@functools.lru_cache(maxsize=2)  # a layer's codes, biases and factors are made one after the other
def down_exponents(checkpoint: Checkpoint, layer: int) -> row_scaling.Exponents:
    """Exponents of the down projection's rows, int32 [hidden], that keep every expert's product within float16.

    SwiGLU's clamp bounds the input of the down projection: at most limit · (limit + 1). So its product is bounded for
    any activations, with routing weights or without. A row has the same exponent in all experts of a layer, because one
    product may sum over them.
    """
    config, module = checkpoint.config, projection_module(layer, DOWN)
    if checkpoint.has_mxfp4_experts:
        largest_scale = read_scales(checkpoint, module).max(axis=(0, 2)).astype(np.int32) - 127
        largest = np.ldexp(np.abs(mxfp4.VALUES).max().astype(np.float64), largest_scale)
    else:
        experts = range(config.num_local_experts)
        by_expert = [np.abs(read_weights(checkpoint, module, expert)).max(axis=1) for expert in experts]
        largest = np.max(by_expert, axis=0).astype(np.float64)
    bias = np.abs(checkpoint.array(f"{module}_bias").astype(np.float64)).max(axis=0)
    largest_input = config.swiglu_limit * (config.swiglu_limit + 1)
    return row_scaling.compute_exponents((config.intermediate_size * largest_input * largest + bias) / _LARGEST_PRODUCT)


def declare_down_factors(g: GraphBuilder, layer: int) -> ir.Value:
    """Declares the factors of the down projection's rows in a float16 graph, float32 [hidden]."""
    spec = factors_spec(projection_module(layer, DOWN), g.config.hidden_size)

    def make() -> RecipeResult:
        return RecipeResult([row_scaling.compute_factors(down_exponents(g.checkpoint, layer))])

    return g.weights("experts", "float32", [spec], make)[0]


def row_exponents(g: GraphBuilder, layer: int, name: ProjectionName) -> row_scaling.Exponents | None:
    """Exponents of a projection's rows, int32 [N]; None where rows are stored unscaled."""
    if stores_rows_unscaled(g) or name != DOWN:
        return None
    return down_exponents(g.checkpoint, layer)


def read_mxfp4(
    checkpoint: Checkpoint, module: str, expert: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reads one projection's MXFP4: blocks uint8 [(E,) N, K/32, 16] and scales uint8 [(E,) N, K/32].

    Args:
        checkpoint: a checkpoint whose experts are MXFP4.
        module: such as ``model.layers.0.mlp.experts.down_proj``.
        expert: one expert; all of them by default.

    Raises:
        CheckpointError: a scale is not finite in float32; 255 is NaN in the format.
    """
    return _read(checkpoint, f"{module}_blocks", expert), read_scales(checkpoint, module, expert)


def read_scales(checkpoint: Checkpoint, module: str, expert: int | None = None) -> NDArray[np.uint8]:
    """Reads one projection's scales, uint8 [(E,) N, K/32]; arguments and errors as for :func:`read_mxfp4`."""
    scales: NDArray[np.uint8] = _read(checkpoint, f"{module}_scales", expert)
    if int(scales.max(initial=0)) > mxfp4.LARGEST_SCALE:
        raise CheckpointError(
            f"{module}_scales holds {int(scales.max())}, which is no finite scale",
            remedy="The weights are damaged: download that shard again.",
        )
    return scales


def read_weights(checkpoint: Checkpoint, module: str, expert: int | None = None) -> NDArray[np.float32]:
    """Reads one projection's exact weights, float32 [(E,) N, K], from MXFP4 or from floats.

    Args:
        checkpoint: the open checkpoint.
        module: such as ``model.layers.0.mlp.experts.down_proj``.
        expert: one expert; all of them by default.
    """
    if checkpoint.has_mxfp4_experts:
        return mxfp4.decode(*read_mxfp4(checkpoint, module, expert))
    return np.ascontiguousarray(_read(checkpoint, module, expert).swapaxes(-1, -2).astype(np.float32))


def _read(checkpoint: Checkpoint, name: str, expert: int | None) -> NDArray[Any]:
    return checkpoint.array(name) if expert is None else checkpoint.array(name, expert, expert + 1)[0]


def quantise_expert(checkpoint: Checkpoint, module: str, expert: int, scheme: Scheme) -> QuantisedMatrix:
    """Quantises one expert's projection in integer blocks; directly from MXFP4's codes where the blocks are the same.

    Args:
        checkpoint: the open checkpoint.
        module: such as ``model.layers.0.mlp.experts.down_proj``.
        expert: the expert.
        scheme: int4 or int8; int8 of MXFP4's own blocks is exact.
    """
    if checkpoint.has_mxfp4_experts and scheme.block_size == mxfp4.BLOCK:
        from_codes = requantise if scheme.type == "int4" else widen
        return from_codes(*read_mxfp4(checkpoint, module, expert))
    return quantise(read_weights(checkpoint, module, expert), bits=scheme.bits, block=scheme.block_size)


def quantise_experts(
    g: GraphBuilder,
    layer: int,
    name: ProjectionName,
    outputs: Sequence[TensorSpec],
    place: Callable[[Part, int, Part], None],
    layout: Layout | None = None,
) -> RecipeResult:
    """Quantises one projection of all experts to integer codes and scales, several experts at a time.

    Args:
        g: the builder.
        layer: the layer.
        name: which projection.
        outputs: codes and scales, as they are stored.
        place: copies one expert's codes or scales to their place; see :func:`gptoss_convert.weights.quantise_parts`.
        layout: reorders one expert's codes; by default they keep their order.
    """
    module, exponents = projection_module(layer, name), row_exponents(g, layer, name)

    def make(expert: int) -> QuantisedMatrix:
        made = quantise_expert(g.checkpoint, module, expert, g.quantisation.experts)
        if exponents is not None:
            made = row_scaling.scale_quantised(made, exponents)
        return replace(made, packed=layout(made.packed)) if layout else made

    return quantise_parts(outputs, range(g.config.num_local_experts), make, place)


def projection_module(layer: int, name: ProjectionName) -> str:
    """The checkpoint's name of one projection of a layer's experts."""
    return f"model.layers.{layer}.mlp.experts.{name}"


def projection_tensors(checkpoint: Checkpoint, module: str) -> tuple[str, ...]:
    """Names of the checkpoint's tensors that hold one projection's weights."""
    return (f"{module}_blocks", f"{module}_scales") if checkpoint.has_mxfp4_experts else (module,)


def projection_shape(config: GptOssConfig, name: ProjectionName) -> tuple[int, int, int]:
    """Experts, rows and columns of one projection's weights, [E, N, K]."""
    experts, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
    return (experts, 2 * inner, hidden) if name == GATE_UP else (experts, hidden, inner)
