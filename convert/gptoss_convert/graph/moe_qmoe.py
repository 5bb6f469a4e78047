"""The mixture of experts by com.microsoft.QMoE, in native MXFP4 or in integers.

Native MXFP4 (``quant_type="fp4"``, on the CPU since onnxruntime 1.32) takes the checkpoint's own bytes: ``*_blocks``
flattened to [E, N, K/2] and ``*_scales`` as float8_e8m0 [E, N, K/32]. Integer codes are [E, N, K·bits/8] with scales
[E, N, K/block] and an implied zero point. Both keep gate and up rows interleaved as in the checkpoint
(``swiglu_fusion=1``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert import mxfp4
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.decoder import Layer
from gptoss_convert.graph.experts import (
    DOWN,
    GATE_UP,
    Layout,
    Part,
    Projection,
    ProjectionName,
    moe_node,
    projection_module,
    projection_shape,
    projection_tensors,
    quantise_experts,
    read_mxfp4,
    read_weights,
    row_exponents,
)
from gptoss_convert.graph.router import router_logits
from gptoss_convert.quantise import QuantisedMatrix
from gptoss_convert.row_scaling import Exponents
from gptoss_convert.schemes import require_whole_blocks
from gptoss_convert.weights import RecipeResult, TensorSpec, cast, cast_rows, quantise_parts

Shape = tuple[int, ...]
Make = Callable[[Sequence[TensorSpec]], RecipeResult]  # makes codes and scales of one projection, as the specs say


def moe_mxfp4(g: GraphBuilder, layer: int, x: ir.Value, router: Layer = router_logits) -> ir.Value:
    """Experts in the checkpoint's own MXFP4, float32 [batch, sequence, hidden] to the same."""
    gate_up, down = _declare_mxfp4(g, layer, GATE_UP), _declare_mxfp4(g, layer, DOWN)
    return mxfp4_node(g, layer, x, gate_up, down, router, weights_prepacked=1)


def moe_integer(g: GraphBuilder, layer: int, x: ir.Value, router: Layer = router_logits) -> ir.Value:
    """Experts in int4 or int8 blocks, float32 [batch, sequence, hidden] to the same."""
    gate_up, down = _declare_integers(g, layer, GATE_UP), _declare_integers(g, layer, DOWN)
    return integer_node(g, layer, x, gate_up, down, router)


def mxfp4_node(
    g: GraphBuilder,
    layer: int,
    x: ir.Value,
    gate_up: Projection,
    down: Projection,
    router: Layer = router_logits,
    **attributes: Any,
) -> ir.Value:
    """Emits QMoE over MXFP4 experts, in any order of their codes; float32 [batch, sequence, hidden] to the same."""
    ones = _declare_global_scales(g, layer)
    absent = [None] * 7  # fc3's weights, scales and bias; three zero points; router_weights
    operands = [*gate_up, *down, *absent, ones, ones]
    return moe_node(
        g, "QMoE", layer, x, operands, router, quant_type="fp4", **attributes, expert_weight_bits=4, block_size=32
    )


def integer_node(
    g: GraphBuilder,
    layer: int,
    x: ir.Value,
    gate_up: Projection,
    down: Projection,
    router: Layer = router_logits,
) -> ir.Value:
    """Emits QMoE over integer experts, in any order of their codes; float32 [batch, sequence, hidden] to the same."""
    scheme = g.quantisation.experts
    attributes = {"expert_weight_bits": scheme.bits, "block_size": scheme.block_size}
    return moe_node(g, "QMoE", layer, x, [*gate_up, *down], router, **attributes)


def declare_mxfp4(g: GraphBuilder, layer: int, name: ProjectionName, shape: Shape, make: Make) -> Projection:
    """Declares one projection in MXFP4.

    Args:
        g: the builder.
        layer: the layer.
        name: which projection.
        shape: of the codes, as they are stored.
        make: makes codes and scales.
    """
    return _declare(g, layer, name, "mxfp4", shape, ir.DataType.FLOAT8E8M0, mxfp4.BLOCK, make)


def declare_integers(
    g: GraphBuilder, layer: int, name: ProjectionName, shape: Shape, layout: Layout | None = None
) -> Projection:
    """Declares one projection in integer blocks.

    Args:
        g: the builder.
        layer: the layer.
        name: which projection.
        shape: of the codes, as they are stored.
        layout: reorders one expert's codes; by default they keep the order of the checkpoint's rows.
    """
    scheme = g.quantisation.experts
    require_whole_blocks("experts", scheme, projection_shape(g.config, name)[2])

    def make(specs: Sequence[TensorSpec]) -> RecipeResult:
        return quantise_experts(g, layer, name, specs, place_expert, layout)

    return _declare(g, layer, name, str(scheme), shape, g.dtype, scheme.block_size, make)


def encode_expert(g: GraphBuilder, layer: int, name: ProjectionName, expert: int) -> QuantisedMatrix:
    """One expert's projection in MXFP4: the checkpoint's own codes, or the nearest ones to a fine-tune's floats."""
    checkpoint, module = g.checkpoint, projection_module(layer, name)
    exponents = row_exponents(g, layer, name)
    if checkpoint.has_mxfp4_experts:
        blocks, scales = read_mxfp4(checkpoint, module, expert)
        return QuantisedMatrix(blocks, _shift_scales(scales, exponents), 0.0, 0.0, 0.0)
    exact = read_weights(checkpoint, module, expert)
    blocks, scales = mxfp4.encode(exact)
    error = mxfp4.decode(blocks, scales) - exact
    squared_error, squared_norm = (float(np.square(part, dtype=np.float64).sum()) for part in (error, exact))
    largest_error = float(np.abs(error).max())
    return QuantisedMatrix(blocks, _shift_scales(scales, exponents), squared_error, squared_norm, largest_error)


def place_expert(whole: Part, expert: int, part: Part) -> None:
    """Copies one expert's codes or scales to their place, for :func:`gptoss_convert.weights.quantise_parts`."""
    whole[expert] = part.reshape(whole.shape[1:])


def _declare(
    g: GraphBuilder,
    layer: int,
    name: ProjectionName,
    scheme: str,
    codes: Shape,
    scales: ir.DataType,
    block: int,
    make: Make,
) -> Projection:
    module = projection_module(layer, name)
    experts, rows, columns = projection_shape(g.config, name)
    specs = [
        TensorSpec(f"{module}.weight", ir.DataType.UINT8, codes),
        TensorSpec(f"{module}.scales", scales, (experts, rows, columns // block)),
    ]
    reads = projection_tensors(g.checkpoint, module)
    stored_codes, stored_scales = g.weights("experts", scheme, specs, lambda: make(specs), reads)
    return Projection(stored_codes, stored_scales, _declare_bias(g, layer, name))


def _declare_bias(g: GraphBuilder, layer: int, name: ProjectionName) -> ir.Value:
    """Declares a projection's bias, [E, N] in the graph's float type, scaled as the weights' rows are."""
    module = projection_module(layer, name)
    spec = TensorSpec(f"{module}.bias", g.dtype, projection_shape(g.config, name)[:2])

    def make() -> RecipeResult:
        stored, exponents = g.checkpoint.array(f"{module}_bias"), row_exponents(g, layer, name)
        if exponents is None:
            return cast(stored, g.numpy_dtype)
        made = cast_rows(stored.T, exponents, g.numpy_dtype)
        return replace(made, arrays=[made.arrays[0].T])

    return g.weights("biases", g.dtype.name.lower(), [spec], make, [f"{module}_bias"])[0]


def _declare_mxfp4(g: GraphBuilder, layer: int, name: ProjectionName) -> Projection:
    experts, rows, columns = projection_shape(g.config, name)

    def make(specs: Sequence[TensorSpec]) -> RecipeResult:
        if not g.checkpoint.has_mxfp4_experts:
            return quantise_parts(specs, range(experts), partial(encode_expert, g, layer, name), place_expert)
        blocks, scales = read_mxfp4(g.checkpoint, projection_module(layer, name))
        # All experts at once: this is a copy, and threads would not speed it up.
        return RecipeResult([blocks.reshape(specs[0].shape), _shift_scales(scales, row_exponents(g, layer, name))])

    return declare_mxfp4(g, layer, name, (experts, rows, columns // 2), make)


def _declare_integers(g: GraphBuilder, layer: int, name: ProjectionName) -> Projection:
    experts, rows, columns = projection_shape(g.config, name)
    return declare_integers(g, layer, name, (experts, rows, columns * g.quantisation.experts.bits // 8))


def _declare_global_scales(g: GraphBuilder, layer: int) -> ir.Value:
    """Declares a global scale of 1 for each expert, float32 [E]."""
    experts = g.config.num_local_experts
    spec = TensorSpec(f"model.layers.{layer}.mlp.experts.global_scale", ir.DataType.FLOAT, (experts,))
    return g.weights("experts", "mxfp4", [spec], lambda: RecipeResult([np.ones(experts, np.float32)]))[0]


def _shift_scales(scales: NDArray[np.uint8], exponents: Exponents | None) -> NDArray[Any]:
    """Scale bytes [(E,) N, K/32] as float8_e8m0, with the rows' powers of two taken out of them."""
    if exponents is not None:
        # A byte below 0 is a weight 2^-100 times its row's largest: the smallest scale will do.
        scales = np.clip(scales.astype(np.int32) - exponents[:, None], 0, 254).astype(np.uint8)
    return scales.view(ml_dtypes.float8_e8m0fnu)
