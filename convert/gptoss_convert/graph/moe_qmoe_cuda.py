"""The mixture of experts by com.microsoft.QMoE with weights as CUDA's kernels read them.

The operator is moe_qmoe.py's; codes lie in the orders of layout_cuda.py, by whose shapes the kernels know them:
[E, K, N·bits/8] where the CPU's are [E, N, K·bits/8]. Scales are the CPU's. The router computes in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import onnx_ir as ir

from gptoss_convert.errors import UnsupportedModel, WorkflowError
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.experts import projection_shape
from gptoss_convert.graph.moe_qmoe import (
    integer_node,
    integer_projection,
    mxfp4_expert,
    mxfp4_node,
    mxfp4_projection,
    place,
)
from gptoss_convert.graph.router import router_logits_float32
from gptoss_convert.layout_cuda import TILE, interleave, transpose_nibbles
from gptoss_convert.quantise import QuantisedMatrix
from gptoss_convert.weights import RecipeResult, TensorSpec, quantise_parts

_BLOCKS = (32, 64, 128)  # that the integer kernels have


def moe_mxfp4(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Experts in the checkpoint's own MXFP4, float32 [batch, sequence, hidden] to the same."""
    up, down = (_mxfp4_projection(g, layer, name) for name in ("gate_up_proj", "down_proj"))
    return mxfp4_node(g, layer, x, [*up, *down], router_logits_float32)


def moe_integer(g: GraphBuilder, layer: int, x: ir.Value) -> ir.Value:
    """Experts in int4 or int8 blocks, float32 [batch, sequence, hidden] to the same.

    Raises:
        UnsupportedModel: dimensions that the kernels' tiles don't divide.
        WorkflowError: blocks of a size they don't have.
    """
    _check(g)
    up, down = (_integer_projection(g, layer, name) for name in ("gate_up_proj", "down_proj"))
    return integer_node(g, layer, x, [*up, *down], router_logits_float32)


def _check(g: GraphBuilder) -> None:
    config, scheme = g.config, g.quantisation.experts
    if config.hidden_size % TILE or config.intermediate_size % TILE:
        raise UnsupportedModel(
            f"experts: {scheme.type} on CUDA takes multiples of {TILE}, "
            f"not {config.hidden_size} x {config.intermediate_size}",
            remedy="Use mxfp4 for the experts.",
        )
    if scheme.block_size not in _BLOCKS:
        raise WorkflowError(f"experts: {scheme} on CUDA", remedy=f"Use a block_size of {', '.join(map(str, _BLOCKS))}.")


def _mxfp4_projection(g: GraphBuilder, layer: int, name: str) -> list[ir.Value]:
    experts, rows, columns = projection_shape(g.config, name)

    def expert(number: int) -> QuantisedMatrix:
        made = mxfp4_expert(g, layer, name, number)
        return replace(made, packed=transpose_nibbles(made.packed.reshape(rows, -1)))

    def make(specs: Sequence[TensorSpec]) -> RecipeResult:
        return quantise_parts(specs, range(experts), expert, place)

    return mxfp4_projection(g, layer, name, (experts, columns, rows // 2), make)


def _integer_projection(g: GraphBuilder, layer: int, name: str) -> list[ir.Value]:
    experts, rows, columns = projection_shape(g.config, name)
    bits = g.quantisation.experts.bits
    shape = (experts, columns, rows * bits // 8)
    return integer_projection(g, layer, name, shape, partial(interleave, bits=bits))
