"""The mixture of experts by com.microsoft.QMoE, in native MXFP4 or in integers.

Native MXFP4 (``quant_type="fp4"``, CPU since onnxruntime 1.32) takes the checkpoint's own bytes: ``*_blocks`` flattened
to [E, N, K/2] and ``*_scales`` as float8_e8m0 [E, N, K/32]. Integers are [E, N, K·bits/8] with scales [E, N, K/block]
and the implied zero point. Both keep gate and up rows interleaved as the checkpoint has them (``swiglu_fusion=1``).
"""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from gptoss_convert import mxfp4
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.experts import (
    Part,
    expert_values,
    moe_node,
    mxfp4_parts,
    projection_shape,
    projection_tensors,
    quantised_experts,
)
from gptoss_convert.quantise import Quantised
from gptoss_convert.schemes import require_whole_blocks
from gptoss_convert.weights import Made, TensorSpec, assembled


def moe_mxfp4(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Experts in the checkpoint's own MXFP4, [batch, sequence, hidden] to the same."""
    up = _mxfp4_projection(g, layer, "gate_up_proj")
    down = _mxfp4_projection(g, layer, "down_proj")
    ones = _global_scales(g, layer)
    absent = [None] * 7  # fc3's three, three zero points, router_weights
    operands = [*up, *down, *absent, ones, ones]
    attributes = {"quant_type": "fp4", "weights_prepacked": 1, "expert_weight_bits": 4, "block_size": 32}
    return moe_node(g, "QMoE", layer, x, operands, **attributes)


def moe_integer(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Experts in int4 or int8 blocks, [batch, sequence, hidden] to the same."""
    scheme = g.quantisation.experts
    operands = [*_integer_projection(g, layer, "gate_up_proj"), *_integer_projection(g, layer, "down_proj")]
    return moe_node(g, "QMoE", layer, x, operands, expert_weight_bits=scheme.bits, block_size=scheme.block_size)


def _mxfp4_projection(g: GraphBuilder, layer: int, name: str) -> list[ir.Value]:
    module, checkpoint = f"model.layers.{layer}.mlp.experts.{name}", g.checkpoint
    experts, rows, columns = projection_shape(g.config, name)
    specs = [
        TensorSpec(f"{module}.weight", ir.DataType.UINT8, (experts, rows, columns // 2)),
        TensorSpec(f"{module}.scales", ir.DataType.FLOAT8E8M0, (experts, rows, columns // 32)),
    ]

    def make() -> Made:
        if checkpoint.has_mxfp4_experts:
            blocks, scales = mxfp4_parts(checkpoint, module)
            return Made([blocks.reshape(specs[0].shape), scales.view(ml_dtypes.float8_e8m0fnu)])
        return _encoded(g, module, specs)

    reads = projection_tensors(checkpoint, module)
    weight, scales = g.weights("experts", "mxfp4", specs, make, reads)
    return [weight, scales, g.copied(f"{module}.bias", f"{module}_bias", group="biases")]


def _encoded(g: GraphBuilder, module: str, specs: Sequence[TensorSpec]) -> Made:
    """Float experts, as fine-tunes have them, in the nearest MXFP4; several experts at a time."""

    def encode(expert: int) -> Quantised:
        exact = expert_values(g.checkpoint, module, expert)
        blocks, exponents = mxfp4.encode(exact)
        error = mxfp4.decode(blocks, exponents) - exact
        squared_error, squared_norm = (float(np.square(part, dtype=np.float64).sum()) for part in (error, exact))
        scales = exponents.view(ml_dtypes.float8_e8m0fnu)
        return Quantised(blocks, scales, squared_error, squared_norm, float(np.abs(error).max()))

    return assembled(specs, range(g.config.num_local_experts), encode, _place)


def _place(whole: Part, expert: int, part: Part) -> None:
    whole[expert] = part.reshape(whole.shape[1:])


def _integer_projection(g: GraphBuilder, layer: int, name: str) -> list[ir.Value]:
    module, scheme = f"model.layers.{layer}.mlp.experts.{name}", g.quantisation.experts
    experts, rows, columns = projection_shape(g.config, name)
    require_whole_blocks("experts", scheme, columns)
    specs = [
        TensorSpec(f"{module}.weight", ir.DataType.UINT8, (experts, rows, columns * scheme.bits // 8)),
        TensorSpec(f"{module}.scales", g.dtype, (experts, rows, columns // scheme.block_size)),
    ]

    def make() -> Made:
        return quantised_experts(g, module, specs, _place)

    reads = projection_tensors(g.checkpoint, module)
    weight, scales = g.weights("experts", str(scheme), specs, make, reads)
    return [weight, scales, g.copied(f"{module}.bias", f"{module}_bias", group="biases")]


def _global_scales(g: GraphBuilder, layer: int) -> ir.Value:
    experts = g.config.num_local_experts
    spec = TensorSpec(f"model.layers.{layer}.mlp.experts.global_scale", ir.DataType.FLOAT, (experts,))
    return g.weights("experts", "mxfp4", [spec], lambda: Made([np.ones(experts, np.float32)]))[0]
