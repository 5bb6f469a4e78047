"""The head: from the last hidden states, normed and float32, to logits in the graph's float type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import onnx_ir as ir

from gptoss_convert.graph.builder import MICROSOFT, GraphBuilder
from gptoss_convert.graph.linear import integer_weights, linear
from gptoss_convert.graph.pieces import Limit
from gptoss_convert.graph.precision import to_graph_type

Logits = Literal["last", "all"]
Head = Callable[[GraphBuilder, ir.Value], None]
_NAME, _SOURCE = "lm_head", "lm_head.weight"


def logits_of_last(g: GraphBuilder, x: ir.Value) -> None:
    """Logits of the last position only, [batch, 1, vocab]: sampling needs no others, and prefill is faster."""
    _output(g, _project(g, _last_position(g, x)), 1)


def logits_of_all(g: GraphBuilder, x: ir.Value) -> None:
    """Logits of every position, [batch, sequence, vocab]: needed to measure parity and perplexity."""
    _output(g, _project(g, x), "sequence")


HEADS: Mapping[Logits, Head] = {"last": logits_of_last, "all": logits_of_all}


def heads_in_pieces(limit: Limit) -> Mapping[Logits, Head]:
    """The same two, with the weight cut along the vocabulary into pieces that dequantise to at most ``limit``."""
    return {
        "last": lambda g, x: _output(g, _project_in_pieces(g, _last_position(g, x), limit), 1),
        "all": lambda g, x: _output(g, _project_in_pieces(g, x, limit), "sequence"),
    }


def _last_position(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.op("Slice", x, g.ints(-1), g.ints((1 << 63) - 1), g.ints(1))


def _head_input(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.watch("head_input", to_graph_type(g, x))


def _output(g: GraphBuilder, logits: ir.Value, positions: int | str) -> None:
    g.output(logits, "logits", g.dtype, ["batch", positions, g.config.vocab_size])


def _project(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return linear(g, _head_input(g, x), _NAME, [_NAME], "lm_head", g.quantisation.lm_head, bias=False)


def _project_in_pieces(g: GraphBuilder, x: ir.Value, limit: Limit) -> ir.Value:
    scheme, (rows, columns) = g.quantisation.lm_head, g.checkpoint.tensors[_SOURCE].shape
    spans = limit.spans(rows, rows * columns * int(g.dtype.itemsize))
    if len(spans) == 1 or not scheme.is_integer:
        return _project(g, x)
    x, parts = _head_input(g, x), []
    for number, (start, end) in enumerate(spans):
        name = f"{_NAME}.{number}.weight"
        codes, scales = integer_weights(g, name, [_SOURCE], "lm_head", scheme, (start, end))
        attributes = {"K": columns, "N": end - start, "bits": scheme.bits, "block_size": scheme.block_size}
        parts.append(g.op("MatMulNBits", x, codes, scales, domain=MICROSOFT, **attributes))
    return g.op("Concat", *parts, axis=2)
