"""From the last hidden states to logits."""

from __future__ import annotations

import onnx_ir as ir

from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.linear import linear


def logits_of_last(g: GraphBuilder, x: ir.Value) -> None:
    """Logits of the last position only, [batch, 1, vocab]: sampling needs no other, and prefill is spared the rest."""
    last = g.op("Slice", x, g.ints(-1), g.ints((1 << 63) - 1), g.ints(1))
    _logits(g, last, 1)


def logits_of_all(g: GraphBuilder, x: ir.Value) -> None:
    """Logits of every position, [batch, sequence, vocab]: what parity and perplexity measurements need."""
    _logits(g, x, "sequence")


def _logits(g: GraphBuilder, x: ir.Value, positions: int | str) -> None:
    y = linear(g, x, "lm_head", ["lm_head"], "lm_head", g.quantisation.lm_head, bias=False)
    g.output(y, "logits", g.dtype, ["batch", positions, g.config.vocab_size])
