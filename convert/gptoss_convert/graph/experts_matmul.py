"""Experts as operands of com.microsoft.MatMulNBits, for execution providers without a mixture-of-experts kernel.

One weight layout serves every design:

    gate and up   the experts' rows are stacked along N: one product computes the hidden values of all experts
    down          the experts' columns lie side by side along K: one product also sums over the experts

The checkpoint interleaves gate rows and up rows. Here an expert's gate rows come first and its up rows second, so that
splitting the product is a contiguous copy. A subset of the experts is a set of whole row blocks of the first weight and
of whole column blocks of the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.experts import (
    DOWN,
    GATE_UP,
    Part,
    Projection,
    ProjectionName,
    declare_down_factors,
    projection_module,
    projection_shape,
    projection_tensors,
    quantise_experts,
)
from gptoss_convert.graph.precision import FLOAT32, constant32, stores_rows_unscaled, to_float32, to_graph_type
from gptoss_convert.schemes import require_whole_blocks
from gptoss_convert.weights import RecipeResult, TensorSpec, cast

_ALPHA = 1.702  # of gpt-oss's swiglu; OpenAI's gpt_oss/torch/model.py
_LOWEST_GATE = -1000.0  # below it, gate · sigmoid(alpha · gate) is 0 in float32 as well


@dataclass(frozen=True)
class Experts:
    """The weights of some experts.

    Attributes:
        count: the number of experts, E below.
        gate_up: codes uint8 [E · 2I, H/block, bytes of a block], scales float [E · 2I, H/block], bias float32 [E · 2I].
        down: codes uint8 [H, E · I/block, bytes of a block], scales float [H, E · I/block], bias float32 [E, H].
        down_factors: factors of the down projection's rows, float32 [H]; None where rows are stored unscaled.
    """

    count: int
    gate_up: Projection
    down: Projection
    down_factors: ir.Value | None

    def with_biases(self, *, gate_up: ir.Value, down: ir.Value) -> Experts:
        """The same experts with other biases."""
        return replace(self, gate_up=self.gate_up._replace(bias=gate_up), down=self.down._replace(bias=down))


def declare_experts(g: GraphBuilder, layer: int) -> Experts:
    """Declares the weights of all experts of a layer."""
    gate_up, down = _declare_gate_up(g, layer), _declare_down(g, layer)
    factors = None if stores_rows_unscaled(g) else declare_down_factors(g, layer)
    return Experts(g.config.num_local_experts, gate_up, down, factors)


def sum_experts(g: GraphBuilder, x: ir.Value, weights: ir.Value, experts: Experts) -> ir.Value:
    """Runs some experts and sums their outputs by routing weight, without the down projection's factors and biases.

    Sums over different experts may be added up; :func:`finish_sum` then applies the factors and biases once.

    Args:
        g: the builder.
        x: [1, sequence, hidden] in the graph's float type.
        weights: routing weight of each expert for each token, float32 [1, sequence, E].
        experts: the experts to run.

    Returns:
        float32 [1, sequence, hidden].
    """
    # MLP #1: gate and up projection, all experts in one product
    gate, up = project_gate_up(g, x, experts)
    hidden = swiglu(g, gate, up)
    # Routing weights are applied before the down projection: it is linear, and its product sums over the experts.
    hidden = apply_routing_weights(g, hidden, weights, experts)
    # MLP #2: down projection and weighted sum over experts, in one product
    total = project_down(g, hidden, experts)
    return to_float32(g, g.watch("experts_product", total))


def finish_sum(g: GraphBuilder, total: ir.Value, weights: ir.Value, experts: Experts) -> ir.Value:
    """Applies the down projection's row factors and adds its biases, each by its expert's routing weight.

    Args:
        g: the builder.
        total: result of :func:`sum_experts`, float32 [1, sequence, hidden].
        weights: routing weight of each expert for each token, float32 [1, sequence, E].
        experts: all experts that were summed.

    Returns:
        float32 [1, sequence, hidden].
    """
    if experts.down_factors is not None:
        total = g.op("Mul", total, experts.down_factors)
    return g.op("Add", total, g.op("MatMul", weights, experts.down.bias))


def project_gate_up(g: GraphBuilder, x: ir.Value, experts: Experts) -> Sequence[ir.Value]:
    """Gate and up values of every token and expert.

    They are float32, as is everything up to the down projection: eight roundings to float16 would be most of the
    experts' error. A product that overflows float16 becomes infinite, and :func:`swiglu` clamps it.

    Args:
        g: the builder.
        x: [1, sequence, hidden] in the graph's float type.
        experts: the experts to run.

    Returns:
        gate and up, float32 [1, sequence, E, 1, I] each.
    """
    config, inner = g.config, g.config.intermediate_size
    product = _multiply(g, x, experts.gate_up, config.hidden_size, experts.count * 2 * inner)
    gate_up = g.op("Add", to_float32(g, product), experts.gate_up.bias)
    halves = g.op("Reshape", gate_up, g.ints(1, -1, experts.count, 2, inner))
    return g.ops("Split", halves, outputs=2, axis=3, num_outputs=2)


def swiglu(g: GraphBuilder, gate: ir.Value, up: ir.Value) -> ir.Value:
    """gpt-oss's clamped SwiGLU, gate · sigmoid(alpha · gate) · (up + 1), in float32.

    Args:
        g: the builder.
        gate: float32, any shape.
        up: float32, the same shape.
    """
    # Clamp the inputs. The gate's lower bound changes no value, but a gate of minus infinity times its sigmoid of 0
    # would be NaN.
    limit = g.config.swiglu_limit
    gate = g.op("Clip", gate, constant32(g, _LOWEST_GATE), constant32(g, limit))
    up = g.op("Clip", up, constant32(g, -limit), constant32(g, limit))
    up_plus_one = g.op("Add", up, constant32(g, 1.0))
    activated = g.op("Mul", gate, g.op("Sigmoid", g.op("Mul", gate, constant32(g, _ALPHA))))
    return g.op("Mul", activated, up_plus_one)


def apply_routing_weights(g: GraphBuilder, hidden: ir.Value, weights: ir.Value, experts: Experts) -> ir.Value:
    """Multiplies each expert's hidden values by its routing weight.

    Args:
        g: the builder.
        hidden: float32 [1, sequence, E, 1, I].
        weights: float32 [1, sequence, E].
        experts: the experts that were run.

    Returns:
        [1, sequence, E · I] in the graph's float type.
    """
    weighted = g.op("Mul", hidden, g.op("Unsqueeze", weights, g.ints(3, 4)))
    flat = g.ints(1, -1, experts.count * g.config.intermediate_size)
    return g.op("Reshape", to_graph_type(g, weighted), flat)


def project_down(g: GraphBuilder, hidden: ir.Value, experts: Experts) -> ir.Value:
    """Down projection of weighted hidden values [1, sequence, E · I], summed over experts: [1, sequence, hidden]."""
    return _multiply(g, hidden, experts.down, experts.count * g.config.intermediate_size, g.config.hidden_size)


def _multiply(g: GraphBuilder, x: ir.Value, projection: Projection, k: int, n: int) -> ir.Value:
    """The product of x [..., K] and a projection's [N, K] weight; the bias is left out."""
    scheme, (codes, scales, _) = g.quantisation.experts, projection
    return g.op(
        "MatMulNBits", x, codes, scales, domain=MICROSOFT, K=k, N=n, bits=scheme.bits, block_size=scheme.block_size
    )  # fmt: skip


def _declare_gate_up(g: GraphBuilder, layer: int) -> Projection:
    experts, rows, columns = projection_shape(g.config, GATE_UP)
    module = projection_module(layer, GATE_UP)
    gates_then_ups = np.concatenate([np.arange(0, rows, 2), np.arange(1, rows, 2)])

    def place_rows(whole: Part, expert: int, part: Part) -> None:
        whole[expert * rows : (expert + 1) * rows] = part[gates_then_ups]

    def make_bias() -> RecipeResult:
        return cast(g.checkpoint.array(f"{module}_bias")[:, gates_then_ups].reshape(-1), np.float32)

    codes, scales = _declare_weights(g, layer, GATE_UP, (experts * rows, columns), place_rows)
    spec = TensorSpec(f"{module}.bias", FLOAT32, (experts * rows,))
    return Projection(codes, scales, g.weights("biases", "float32", [spec], make_bias)[0])


def _declare_down(g: GraphBuilder, layer: int) -> Projection:
    experts, rows, columns = projection_shape(g.config, DOWN)
    module = projection_module(layer, DOWN)

    def place_columns(whole: Part, expert: int, part: Part) -> None:
        whole[:, expert * part.shape[1] : (expert + 1) * part.shape[1]] = part

    codes, scales = _declare_weights(g, layer, DOWN, (rows, experts * columns), place_columns)
    return Projection(codes, scales, g.copy_tensor(f"{module}.bias", f"{module}_bias", group="biases", dtype=FLOAT32))


def _declare_weights(
    g: GraphBuilder,
    layer: int,
    name: ProjectionName,
    shape: tuple[int, int],
    place: Callable[[Part, int, Part], None],
) -> Sequence[ir.Value]:
    """Declares codes and scales of one projection of all experts.

    Args:
        g: the builder.
        layer: the layer.
        name: which projection.
        shape: rows and columns of the whole weight.
        place: copies one expert's codes or scales to their place in the whole.
    """
    scheme, module = g.quantisation.experts, projection_module(layer, name)
    rows, columns = shape
    require_whole_blocks("experts", scheme, projection_shape(g.config, name)[2])
    blocks = columns // scheme.block_size
    specs = [
        TensorSpec(f"{module}.weight", ir.DataType.UINT8, (rows, blocks, scheme.block_size * scheme.bits // 8)),
        TensorSpec(f"{module}.scales", g.dtype, (rows, blocks)),
    ]

    def make() -> RecipeResult:
        return quantise_experts(g, layer, name, specs, place)

    return g.weights("experts", str(scheme), specs, make, projection_tensors(g.checkpoint, module))
