"""The order of the pieces: the decoder of gpt-oss, readable in one sitting.

A :class:`Composition` names the pieces; :func:`decoder` puts them together. Source: ``GptOssModel.forward`` of
transformers and OpenAI's gpt_oss/torch/model.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from gptoss_convert.graph import inputs
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.embedding import embedding
from gptoss_convert.graph.norms import add_rms_norm, rms_norm

Layer = Callable[[GraphBuilder, int, ir.Value], ir.Value]


@dataclass(frozen=True)
class Composition:
    """The pieces of one graph.

    Attributes:
        attention: adds what all layers share and returns the function that emits one layer's attention.
        moe: emits one layer's experts.
        head: emits the logits.
        embed: emits the hidden states of token ids.
    """

    attention: Callable[[GraphBuilder], Layer]
    moe: Layer
    head: Callable[[GraphBuilder, ir.Value], None]
    embed: Callable[[GraphBuilder, ir.Value], ir.Value] = embedding


def decoder(g: GraphBuilder, pieces: Composition) -> None:
    """Emits the whole decoder."""
    residual = pieces.embed(g, inputs.token_ids(g))
    attention = pieces.attention(g)
    update: ir.Value | None = None
    for layer in range(g.config.num_hidden_layers):
        with g.scope(f"layers.{layer}"):
            source = f"model.layers.{layer}"
            x, residual = _norm(g, update, residual, f"{source}.input_layernorm.weight")
            update = attention(g, layer, x)
            x, residual = add_rms_norm(g, update, residual, f"{source}.post_attention_layernorm.weight")
            update = pieces.moe(g, layer, x)
    x, _ = _norm(g, update, residual, "model.norm.weight")
    pieces.head(g, x)


def _norm(g: GraphBuilder, update: ir.Value | None, residual: ir.Value, source: str) -> tuple[ir.Value, ir.Value]:
    if update is None:  # nothing to add before the first layer
        return rms_norm(g, residual, source), residual
    return add_rms_norm(g, update, residual, source)
