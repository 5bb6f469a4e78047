"""The mixture of experts by com.microsoft.QMoE, in native MXFP4 or in integers.

Native MXFP4 (``quant_type="fp4"``, CPU since onnxruntime 1.32) takes the checkpoint's own bytes: ``*_blocks`` flattened
to [E, N, K/2] and ``*_scales`` as float8_e8m0 [E, N, K/32]. Integers are [E, N, K·bits/8] with scales [E, N, K/block]
and the implied zero point. Both keep gate and up rows interleaved as the checkpoint has them (``swiglu_fusion=1``).
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
    Layout,
    Part,
    expert_values,
    moe_node,
    mxfp4_parts,
    projection_shape,
    projection_tensors,
    quantised_experts,
    row_exponents,
)
from gptoss_convert.graph.router import router_logits
from gptoss_convert.quantise import QuantisedMatrix
from gptoss_convert.row_scaling import Exponents
from gptoss_convert.schemes import require_whole_blocks
from gptoss_convert.weights import RecipeResult, TensorSpec, cast, cast_rows, quantise_parts

Shape = tuple[int, ...]
# Makes codes and scales of one projection, given how both are to be stored.
Make = Callable[[Sequence[TensorSpec]], RecipeResult]


def moe_mxfp4(g: GraphBuilder, layer: int, x: ir.Value, router: Layer = router_logits) -> ir.Value:
    """Experts in the checkpoint's own MXFP4, float32 [batch, sequence, hidden] to the same."""
    up, down = (_mxfp4_projection(g, layer, name) for name in ("gate_up_proj", "down_proj"))
    return mxfp4_node(g, layer, x, [*up, *down], router, weights_prepacked=1)


def moe_integer(g: GraphBuilder, layer: int, x: ir.Value, router: Layer = router_logits) -> ir.Value:
    """Experts in int4 or int8 blocks, float32 [batch, sequence, hidden] to the same."""
    up, down = (_integer_projection(g, layer, name) for name in ("gate_up_proj", "down_proj"))
    return integer_node(g, layer, x, [*up, *down], router)


def mxfp4_node(
    g: GraphBuilder,
    layer: int,
    x: ir.Value,
    projections: Sequence[ir.Value],
    router: Layer = router_logits,
    **attributes: Any,
) -> ir.Value:
    """The node of MXFP4 experts, whichever way their codes lie."""
    ones = _global_scales(g, layer)
    absent = [None] * 7  # fc3's three, three zero points, router_weights
    operands = [*projections, *absent, ones, ones]
    return moe_node(
        g, "QMoE", layer, x, operands, router, quant_type="fp4", **attributes, expert_weight_bits=4, block_size=32
    )


def integer_node(
    g: GraphBuilder,
    layer: int,
    x: ir.Value,
    projections: Sequence[ir.Value],
    router: Layer = router_logits,
) -> ir.Value:
    """The node of experts in integers, whichever way their codes lie."""
    scheme = g.quantisation.experts
    attributes = {"expert_weight_bits": scheme.bits, "block_size": scheme.block_size}
    return moe_node(g, "QMoE", layer, x, projections, router, **attributes)


def mxfp4_projection(g: GraphBuilder, layer: int, name: str, shape: Shape, make: Make) -> list[ir.Value]:
    """Declares codes, scales and bias of one projection.

    Args:
        g: the builder.
        layer: whose experts.
        name: "gate_up_proj" or "down_proj".
        shape: of the codes as they are to be stored.
        make: makes codes and scales.
    """
    return _projection(g, layer, name, "mxfp4", shape, ir.DataType.FLOAT8E8M0, mxfp4.BLOCK, make)


def mxfp4_expert(g: GraphBuilder, layer: int, name: str, expert: int) -> QuantisedMatrix:
    """One expert's projection in MXFP4: its own, or the nearest to float weights, as fine-tunes have them."""
    checkpoint, module = g.checkpoint, f"model.layers.{layer}.mlp.experts.{name}"
    exponents = row_exponents(g, layer, name)
    if checkpoint.has_mxfp4_experts:
        blocks, steps = mxfp4_parts(checkpoint, module, expert)
        return QuantisedMatrix(blocks, _scales(steps, exponents), 0.0, 0.0, 0.0)
    exact = expert_values(checkpoint, module, expert)
    blocks, steps = mxfp4.encode(exact)
    error = mxfp4.decode(blocks, steps) - exact
    squared_error, squared_norm = (float(np.square(part, dtype=np.float64).sum()) for part in (error, exact))
    return QuantisedMatrix(blocks, _scales(steps, exponents), squared_error, squared_norm, float(np.abs(error).max()))


def _scales(steps: NDArray[np.uint8], exponents: Exponents | None) -> NDArray[Any]:
    """Scale bytes [(E,) N, K/32] as float8_e8m0, rows brought to their common size."""
    if exponents is not None:
        # A byte below 0 is a weight 2^-100 of its row's largest: the smallest scale will do.
        steps = np.clip(steps.astype(np.int32) - exponents[:, None], 0, 254).astype(np.uint8)
    return steps.view(ml_dtypes.float8_e8m0fnu)


def integer_projection(
    g: GraphBuilder, layer: int, name: str, shape: Shape, layout: Layout | None = None
) -> list[ir.Value]:
    """Declares codes, scales and bias of one projection.

    Args:
        g: the builder.
        layer: whose experts.
        name: "gate_up_proj" or "down_proj".
        shape: of the codes as they are to be stored.
        layout: their order; the checkpoint's rows without one.
    """
    scheme = g.quantisation.experts
    require_whole_blocks("experts", scheme, projection_shape(g.config, name)[2])

    def make(specs: Sequence[TensorSpec]) -> RecipeResult:
        return quantised_experts(g, layer, name, specs, place, layout)

    return _projection(g, layer, name, str(scheme), shape, g.dtype, scheme.block_size, make)


def _projection(
    g: GraphBuilder, layer: int, name: str, scheme: str, codes: Shape, scales: ir.DataType, block: int, make: Make
) -> list[ir.Value]:
    module = f"model.layers.{layer}.mlp.experts.{name}"
    experts, rows, columns = projection_shape(g.config, name)
    specs = [
        TensorSpec(f"{module}.weight", ir.DataType.UINT8, codes),
        TensorSpec(f"{module}.scales", scales, (experts, rows, columns // block)),
    ]
    reads = projection_tensors(g.checkpoint, module)
    weights = g.weights("experts", scheme, specs, lambda: make(specs), reads)
    return [*weights, _bias(g, layer, name)]


def _bias(g: GraphBuilder, layer: int, name: str) -> ir.Value:
    """Declares a projection's bias, [E, N] in the graph's float type, of the size that the weights' rows have."""
    module = f"model.layers.{layer}.mlp.experts.{name}"
    spec = TensorSpec(f"{module}.bias", g.dtype, projection_shape(g.config, name)[:2])

    def make() -> RecipeResult:
        stored, exponents = g.checkpoint.array(f"{module}_bias"), row_exponents(g, layer, name)
        if exponents is None:
            return cast(stored, g.numpy_dtype)
        made = cast_rows(stored.T, exponents, g.numpy_dtype)
        return replace(made, arrays=[made.arrays[0].T])

    return g.weights("biases", g.dtype.name.lower(), [spec], make, [f"{module}_bias"])[0]


def place(whole: Part, expert: int, part: Part) -> None:
    """Puts an expert's codes or scales where they belong, for :func:`gptoss_convert.weights.quantise_parts`."""
    whole[expert] = part.reshape(whole.shape[1:])


def _mxfp4_projection(g: GraphBuilder, layer: int, name: str) -> list[ir.Value]:
    experts, rows, columns = projection_shape(g.config, name)

    def make(specs: Sequence[TensorSpec]) -> RecipeResult:
        if not g.checkpoint.has_mxfp4_experts:
            return quantise_parts(specs, range(experts), partial(mxfp4_expert, g, layer, name), place)
        blocks, steps = mxfp4_parts(g.checkpoint, f"model.layers.{layer}.mlp.experts.{name}")
        # a copy: nothing to share between threads
        return RecipeResult([blocks.reshape(specs[0].shape), _scales(steps, row_exponents(g, layer, name))])

    return mxfp4_projection(g, layer, name, (experts, rows, columns // 2), make)


def _integer_projection(g: GraphBuilder, layer: int, name: str) -> list[ir.Value]:
    experts, rows, columns = projection_shape(g.config, name)
    return integer_projection(g, layer, name, (experts, rows, columns * g.quantisation.experts.bits // 8))


def _global_scales(g: GraphBuilder, layer: int) -> ir.Value:
    experts = g.config.num_local_experts
    spec = TensorSpec(f"model.layers.{layer}.mlp.experts.global_scale", ir.DataType.FLOAT, (experts,))
    return g.weights("experts", "mxfp4", [spec], lambda: RecipeResult([np.ones(experts, np.float32)]))[0]
