"""The mixture of experts by com.microsoft.QMoE with weights as CUDA's kernels read them.

The operator is moe_qmoe.py's. Codes are in the orders of layout_cuda.py, which the kernels recognise by their shapes:
[E, K, N·bits/8] where the CPU's are [E, N, K·bits/8]. Scales are as for the CPU. The router computes in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from gptoss_convert.errors import UnsupportedModel, WorkflowError
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.experts import DOWN, GATE_UP, Projection, ProjectionName, projection_shape
from gptoss_convert.graph.moe_qmoe import (
    declare_integers,
    declare_mxfp4,
    encode_expert,
    integer_node,
    mxfp4_node,
    place_expert,
)
from gptoss_convert.graph.router import router_logits_float32
from gptoss_convert.layout_cuda import TILE, interleave, transpose_nibbles
from gptoss_convert.quantise import QuantisedMatrix
from gptoss_convert.weights import RecipeResult, TensorSpec, quantise_parts

_BLOCK_SIZES = (32, 64, 128)  # of the integer kernels


def moe_mxfp4(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Experts in the checkpoint's own MXFP4, float32 [batch, sequence, hidden] to the same."""
    gate_up, down = _declare_mxfp4(g, layer, GATE_UP), _declare_mxfp4(g, layer, DOWN)
    return mxfp4_node(g, layer, x, gate_up, down, router_logits_float32)


def moe_integer(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Experts in int4 or int8 blocks, float32 [batch, sequence, hidden] to the same.

    Raises:
        UnsupportedModel: the kernels' tile size does not divide the dimensions.
        WorkflowError: the kernels have no such block size.
    """
    _require_kernels(g)
    gate_up, down = _declare_integers(g, layer, GATE_UP), _declare_integers(g, layer, DOWN)
    return integer_node(g, layer, x, gate_up, down, router_logits_float32)


def _require_kernels(g: GraphBuilder) -> None:
    config, scheme = g.config, g.quantisation.experts
    if config.hidden_size % TILE or config.intermediate_size % TILE:
        raise UnsupportedModel(
            f"experts: {scheme.type} on CUDA takes multiples of {TILE}, "
            f"not {config.hidden_size} x {config.intermediate_size}",
            remedy="Use mxfp4 for the experts.",
        )
    if scheme.block_size not in _BLOCK_SIZES:
        sizes = ", ".join(map(str, _BLOCK_SIZES))
        raise WorkflowError(f"experts: {scheme} on CUDA", remedy=f"Use a block_size of {sizes}.")


def _declare_mxfp4(g: GraphBuilder, layer: int, name: ProjectionName) -> Projection:
    experts, rows, columns = projection_shape(g.config, name)

    def encode(expert: int) -> QuantisedMatrix:
        made = encode_expert(g, layer, name, expert)
        return replace(made, packed=transpose_nibbles(made.packed.reshape(rows, -1)))

    def make(specs: Sequence[TensorSpec]) -> RecipeResult:
        return quantise_parts(specs, range(experts), encode, place_expert)

    return declare_mxfp4(g, layer, name, (experts, columns, rows // 2), make)


def _declare_integers(g: GraphBuilder, layer: int, name: ProjectionName) -> Projection:
    experts, rows, columns = projection_shape(g.config, name)
    bits = g.quantisation.experts.bits
    shape = (experts, columns, rows * bits // 8)
    return declare_integers(g, layer, name, shape, partial(interleave, bits=bits))
