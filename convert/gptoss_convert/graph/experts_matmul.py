"""Experts as operands of com.microsoft.MatMulNBits, for execution providers without a mixture-of-experts kernel.

One layout serves every design: gate_up stacked along N, so that one product computes all experts' hidden values, and
down side by side along K, so that one product sums over experts by itself. Rows of gate_up are put in order (an
expert's gates, then its ups) where the checkpoint has them interleaved: splitting is then a contiguous copy. Chosen
experts are whole blocks of rows of the one and of columns of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.experts import Part, projection_shape, projection_tensors, quantised_experts
from gptoss_convert.schemes import require_whole_blocks
from gptoss_convert.weights import Made, TensorSpec, cast

_ALPHA = 1.702  # of gpt-oss's swiglu; OpenAI's gpt_oss/torch/model.py


@dataclass(frozen=True)
class Experts:
    """Some experts' operands.

    Attributes:
        count: how many, E below.
        up: codes uint8 [E · 2I, H/block, bytes of a block], scales float [E · 2I, H/block], bias float [E · 2I].
        down: codes uint8 [H, E · I/block, bytes], scales float [H, E · I/block], bias float [E, H].
    """

    count: int
    up: tuple[ir.Value, ir.Value, ir.Value]
    down: tuple[ir.Value, ir.Value, ir.Value]


def all_experts(g: GraphBuilder, layer: int) -> Experts:
    """Declares a layer's experts."""
    return Experts(g.config.num_local_experts, _up(g, layer), _down(g, layer))


def mixed(g: GraphBuilder, x: ir.Value, weights: ir.Value, experts: Experts) -> ir.Value:
    """What some experts make of tokens, weighted and summed.

    Args:
        g: the builder.
        x: [1, sequence, hidden].
        weights: of each expert for each token, [1, sequence, E].
        experts: which.

    Returns:
        [1, sequence, hidden].
    """
    config, count, inner = g.config, experts.count, g.config.intermediate_size
    codes, scales, bias = experts.up
    hidden = g.op("Add", _product(g, x, codes, scales, config.hidden_size, count * 2 * inner), bias)
    halves = g.op("Reshape", hidden, g.ints(1, -1, count, 2, inner))
    gate, up = g.ops("Split", halves, outputs=2, axis=3, num_outputs=2)
    limit = config.swiglu_limit
    gate = g.op("Clip", gate, None, g.constant(limit))
    up = g.op("Add", g.op("Clip", up, g.constant(-limit), g.constant(limit)), g.constant(1.0))
    active = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", g.op("Mul", gate, g.constant(_ALPHA)))), up)
    # Weighted before the second product: it is linear, and sums over the experts by itself.
    weighted = g.op("Mul", active, g.op("Unsqueeze", weights, g.ints(3, 4)))
    codes, scales, bias = experts.down
    flat = g.op("Reshape", weighted, g.ints(1, -1, count * inner))
    y = _product(g, flat, codes, scales, count * inner, config.hidden_size)
    return g.op("Add", y, g.op("MatMul", weights, bias))


def _product(g: GraphBuilder, x: ir.Value, codes: ir.Value, scales: ir.Value, k: int, n: int) -> ir.Value:
    scheme = g.quantisation.experts
    return g.op(
        "MatMulNBits", x, codes, scales, domain=MICROSOFT, K=k, N=n, bits=scheme.bits, block_size=scheme.block_size
    )  # fmt: skip


def _up(g: GraphBuilder, layer: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    experts, rows, columns = projection_shape(g.config, "gate_up_proj")
    module = f"model.layers.{layer}.mlp.experts.gate_up_proj"
    require_whole_blocks("experts", g.quantisation.experts, columns)
    order = np.concatenate([np.arange(0, rows, 2), np.arange(1, rows, 2)])  # gates, then ups

    def place(whole: Part, expert: int, part: Part) -> None:
        whole[expert * rows : (expert + 1) * rows] = part[order]

    def bias() -> Made:
        return cast(g.checkpoint.array(f"{module}_bias")[:, order].reshape(-1), g.numpy_dtype)

    codes, scales = _declare(g, module, (experts * rows, columns), place)
    spec = TensorSpec(f"{module}.bias", g.dtype, (experts * rows,))
    return codes, scales, g.weights("biases", g.dtype.name.lower(), [spec], bias)[0]


def _down(g: GraphBuilder, layer: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    experts, rows, columns = projection_shape(g.config, "down_proj")
    require_whole_blocks("experts", g.quantisation.experts, columns)
    module = f"model.layers.{layer}.mlp.experts.down_proj"

    def place(whole: Part, expert: int, part: Part) -> None:
        whole[:, expert * part.shape[1] : (expert + 1) * part.shape[1]] = part

    codes, scales = _declare(g, module, (rows, experts * columns), place)
    return codes, scales, g.copied(f"{module}.bias", f"{module}_bias", group="biases")


def _declare(
    g: GraphBuilder, module: str, shape: tuple[int, int], place: Callable[[Part, int, Part], None]
) -> Sequence[ir.Value]:
    """Declares codes and scales of one projection; ``place`` puts an expert's where they belong."""
    scheme = g.quantisation.experts
    rows, columns = shape
    blocks = columns // scheme.block_size
    specs = [
        TensorSpec(f"{module}.weight", ir.DataType.UINT8, (rows, blocks, scheme.block_size * scheme.bits // 8)),
        TensorSpec(f"{module}.scales", g.dtype, (rows, blocks)),
    ]

    def make() -> Made:
        return quantised_experts(g, module, specs, place)

    reads = projection_tensors(g.checkpoint, module)
    return g.weights("experts", str(scheme), specs, make, reads)
