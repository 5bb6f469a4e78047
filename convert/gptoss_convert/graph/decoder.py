"""The order of the pieces: the decoder of gpt-oss, readable in one sitting.

A :class:`Composition` names the pieces; :func:`decoder` puts them together, the others put together a part of it.
Between the pieces everything is float32: the stream, what is added to it, and normed values. What a piece computes in
the graph's float type is its own affair. The stream's values are called ``hidden_states.0`` (embedding) to
``hidden_states.N`` (after the last layer). Source: ``GptOssModel.forward`` of transformers and OpenAI's
gpt_oss/torch/model.py.
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
    """The pieces of one graph; each takes and gives float32.

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
    residual = _named(pieces.embed(g, inputs.token_ids(g)), 0)
    attention = pieces.attention(g)
    update: ir.Value | None = None
    for layer in range(g.config.num_hidden_layers):
        update, residual = _layer(g, pieces, attention, layer, update, residual)
    x, residual = _norm(g, update, residual, "model.norm.weight")
    _named(residual, g.config.num_hidden_layers)
    pieces.head(g, x)


def embedding_part(g: GraphBuilder, pieces: Composition) -> None:
    """Emits the embedding alone: ``input_ids`` to ``hidden_states``."""
    hidden = pieces.embed(g, inputs.token_ids(g))
    g.output(hidden, "hidden_states", ir.DataType.FLOAT, ["batch", "sequence", g.config.hidden_size])


def layer_part(g: GraphBuilder, pieces: Composition, layer: int) -> None:
    """Emits one layer alone: ``hidden_states``, the stream before it, to ``next_hidden_states``, after it."""
    hidden = inputs.hidden_states(g)
    update, residual = _layer(g, pieces, pieces.attention(g), layer, None, hidden)
    shape: list[int | str] = ["batch", "sequence", g.config.hidden_size]
    g.output(g.op("Add", residual, update), "next_hidden_states", ir.DataType.FLOAT, shape)


def head_part(g: GraphBuilder, pieces: Composition) -> None:
    """Emits the last norm and the head: ``hidden_states`` to ``logits``."""
    pieces.head(g, rms_norm(g, inputs.hidden_states(g), "model.norm.weight"))


def _layer(
    g: GraphBuilder, pieces: Composition, attention: Layer, layer: int, update: ir.Value | None, residual: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """What one layer's experts add, and the stream that it is to be added to."""
    with g.scope(f"layers.{layer}"):
        source = f"model.layers.{layer}"
        x, residual = _norm(g, update, residual, f"{source}.input_layernorm.weight")
        if update is not None:
            _named(residual, layer)
        update = attention(g, layer, x)
        x, residual = add_rms_norm(g, update, residual, f"{source}.post_attention_layernorm.weight")
        return pieces.moe(g, layer, x), residual


def _norm(g: GraphBuilder, update: ir.Value | None, residual: ir.Value, source: str) -> tuple[ir.Value, ir.Value]:
    if update is None:  # nothing to add before the first layer
        return rms_norm(g, residual, source), residual
    return add_rms_norm(g, update, residual, source)


def _named(hidden: ir.Value, layers: int) -> ir.Value:
    hidden.name = f"hidden_states.{layers}"
    return hidden
