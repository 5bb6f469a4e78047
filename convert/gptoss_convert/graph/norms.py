"""RMSNorm, alone and fused with the residual addition before it."""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder


def rms_norm(g: GraphBuilder, x: ir.Value, source: str) -> ir.Value:
    """x / rms(x) · weight, [batch, sequence, hidden]."""
    weight = g.copied(source, source, group="norms")
    return g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=g.config.rms_norm_eps, stash_type=1)


def add_rms_norm(g: GraphBuilder, x: ir.Value, residual: ir.Value, source: str) -> tuple[ir.Value, ir.Value]:
    """(norm(x + residual), x + residual), both [batch, sequence, hidden], in one node."""
    weight = g.copied(source, source, group="norms")
    normed, mean, inverse, total = g.ops(
        "SkipSimplifiedLayerNormalization",
        x,
        residual,
        weight,
        outputs=4,
        domain=MICROSOFT,
        epsilon=g.config.rms_norm_eps,
    )
    mean.name = inverse.name = ""  # absent: DirectML takes no node that is asked for them
    return normed, total
