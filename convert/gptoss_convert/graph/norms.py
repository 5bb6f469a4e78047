"""RMSNorm of the float32 stream, alone and fused with the residual addition before it."""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.precision import FLOAT32


def rms_norm(g: GraphBuilder, x: ir.Value, source: str) -> ir.Value:
    """x / rms(x) · weight, float32 [batch, sequence, hidden]; ``source`` is the weight's name in the checkpoint."""
    weight = g.copy_tensor(source, source, group="norms", dtype=FLOAT32)
    return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=g.config.rms_norm_eps, stash_type=1)


def add_rms_norm(g: GraphBuilder, x: ir.Value, residual: ir.Value, source: str) -> tuple[ir.Value, ir.Value]:
    """(norm(x + residual), x + residual), both float32 [batch, sequence, hidden], in one node."""
    weight = g.copy_tensor(source, source, group="norms", dtype=FLOAT32)
    normed, mean, inverse, total = g.ops(
        "SkipSimplifiedLayerNormalization",
        x,
        residual,
        weight,
        outputs=4,
        domain=MICROSOFT,
        epsilon=g.config.rms_norm_eps,
    )
    mean.name = inverse.name = ""  # omitted: DirectML refuses a node with these outputs
    return normed, total
