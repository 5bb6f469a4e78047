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
from gptoss_convert.graph.experts import (
    Part,
    down_factors,
    projection_shape,
    projection_tensors,
    quantised_experts,
)
from gptoss_convert.graph.precision import FLOAT32, constant32, keeps_rows, to_float32, to_graph_type
from gptoss_convert.schemes import require_whole_blocks
from gptoss_convert.weights import RecipeResult, TensorSpec, cast

_ALPHA = 1.702  # of gpt-oss's swiglu; OpenAI's gpt_oss/torch/model.py
_LOWEST_GATE = -1000.0  # below it, gate · sigmoid(alpha · gate) is 0 in float32 as well


@dataclass(frozen=True)
class Experts:
    """Some experts' operands.

    Attributes:
        count: how many, E below.
        up: codes uint8 [E · 2I, H/block, bytes of a block], scales float [E · 2I, H/block], bias float32 [E · 2I].
        down: codes uint8 [H, E · I/block, bytes], scales float [H, E · I/block], bias float32 [E, H].
        factors: of down's rows, float32 [H]; None where they are stored as they are.
    """

    count: int
    up: tuple[ir.Value, ir.Value, ir.Value]
    down: tuple[ir.Value, ir.Value, ir.Value]
    factors: ir.Value | None


def all_experts(g: GraphBuilder, layer: int) -> Experts:
    """Declares a layer's experts."""
    up, down = _up(g, layer), _down(g, layer)
    return Experts(g.config.num_local_experts, up, down, None if keeps_rows(g) else down_factors(g, layer))


def mix(g: GraphBuilder, x: ir.Value, weights: ir.Value, experts: Experts) -> ir.Value:
    """What some experts make of tokens, weighted and summed, without down's biases and before down's factors.

    Args:
        g: the builder.
        x: [1, sequence, hidden] in the graph's float type.
        weights: of each expert for each token, float32 [1, sequence, E].
        experts: which.

    Returns:
        float32 [1, sequence, hidden], for :func:`finish`.
    """
    return to_float32(g, g.watch("experts_product", project_down(g, activate(g, x, weights, experts), experts)))


def finish(g: GraphBuilder, product: ir.Value, weights: ir.Value, experts: Experts) -> ir.Value:
    """A sum of :func:`mix` with its factors and biases.

    Args:
        g: the builder.
        product: float32 [1, sequence, hidden].
        weights: of each expert for each token, float32 [1, sequence, E].
        experts: all that were summed.
    """
    if experts.factors is not None:
        product = g.op("Mul", product, experts.factors)
    return g.op("Add", product, g.op("MatMul", weights, experts.down[2]))


def activate(g: GraphBuilder, x: ir.Value, weights: ir.Value, experts: Experts) -> ir.Value:
    """Some experts' hidden values, weighted, [1, sequence, E · I] in the graph's float type; arguments as of mix.

    Between the two products it is float32: eight roundings to float16 would be most of the experts' error.
    """
    config, count, inner = g.config, experts.count, g.config.intermediate_size
    codes, scales, bias = experts.up
    product = _product(g, x, codes, scales, config.hidden_size, count * 2 * inner)  # clipped below: infinity will do
    hidden = g.op("Add", to_float32(g, product), bias)
    halves = g.op("Reshape", hidden, g.ints(1, -1, count, 2, inner))
    gate, up = g.ops("Split", halves, outputs=2, axis=3, num_outputs=2)
    limit = config.swiglu_limit
    # A gate of minus infinity, where the product overflowed, times its sigmoid of 0 would be no number.
    gate = g.op("Clip", gate, constant32(g, _LOWEST_GATE), constant32(g, limit))
    up = g.op("Add", g.op("Clip", up, constant32(g, -limit), constant32(g, limit)), constant32(g, 1.0))
    active = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", g.op("Mul", gate, constant32(g, _ALPHA)))), up)
    # Weighted before the second product: it is linear, and sums over the experts by itself.
    weighted = g.op("Mul", active, g.op("Unsqueeze", weights, g.ints(3, 4)))
    return g.op("Reshape", to_graph_type(g, weighted), g.ints(1, -1, count * inner))


def project_down(g: GraphBuilder, hidden: ir.Value, experts: Experts) -> ir.Value:
    """The second product, summed over experts, [1, sequence, hidden] in the graph's float type."""
    codes, scales, _ = experts.down
    return _product(g, hidden, codes, scales, experts.count * g.config.intermediate_size, g.config.hidden_size)


def _product(g: GraphBuilder, x: ir.Value, codes: ir.Value, scales: ir.Value, k: int, n: int) -> ir.Value:
    scheme = g.quantisation.experts
    return g.op(
        "MatMulNBits", x, codes, scales, domain=MICROSOFT, K=k, N=n, bits=scheme.bits, block_size=scheme.block_size
    )  # fmt: skip


def _up(g: GraphBuilder, layer: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    experts, rows, columns = projection_shape(g.config, "gate_up_proj")
    module = f"model.layers.{layer}.mlp.experts.gate_up_proj"
    order = np.concatenate([np.arange(0, rows, 2), np.arange(1, rows, 2)])  # gates, then ups

    def place(whole: Part, expert: int, part: Part) -> None:
        whole[expert * rows : (expert + 1) * rows] = part[order]

    def bias() -> RecipeResult:
        return cast(g.checkpoint.array(f"{module}_bias")[:, order].reshape(-1), np.float32)

    codes, scales = _declare(g, layer, "gate_up_proj", (experts * rows, columns), place)
    spec = TensorSpec(f"{module}.bias", FLOAT32, (experts * rows,))
    return codes, scales, g.weights("biases", "float32", [spec], bias)[0]


def _down(g: GraphBuilder, layer: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    experts, rows, columns = projection_shape(g.config, "down_proj")
    module = f"model.layers.{layer}.mlp.experts.down_proj"

    def place(whole: Part, expert: int, part: Part) -> None:
        whole[:, expert * part.shape[1] : (expert + 1) * part.shape[1]] = part

    codes, scales = _declare(g, layer, "down_proj", (rows, experts * columns), place)
    return codes, scales, g.copied(f"{module}.bias", f"{module}_bias", group="biases", dtype=FLOAT32)


def _declare(
    g: GraphBuilder, layer: int, name: str, shape: tuple[int, int], place: Callable[[Part, int, Part], None]
) -> Sequence[ir.Value]:
    """Declares codes and scales of one projection; ``place`` puts an expert's where they belong."""
    scheme, module = g.quantisation.experts, f"model.layers.{layer}.mlp.experts.{name}"
    rows, columns = shape
    require_whole_blocks("experts", scheme, projection_shape(g.config, name)[2])
    blocks = columns // scheme.block_size
    specs = [
        TensorSpec(f"{module}.weight", ir.DataType.UINT8, (rows, blocks, scheme.block_size * scheme.bits // 8)),
        TensorSpec(f"{module}.scales", g.dtype, (rows, blocks)),
    ]

    def make() -> RecipeResult:
        return quantised_experts(g, layer, name, specs, place)

    reads = projection_tensors(g.checkpoint, module)
    return g.weights("experts", str(scheme), specs, make, reads)
