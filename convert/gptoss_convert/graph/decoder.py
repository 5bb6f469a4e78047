"""The decoder of gpt-oss, readable in one sitting: embedding, layers of attention and experts, norm, head.

A :class:`Composition` names the pieces. :func:`decoder` puts them together; the functions after it put together one
part of it. Between pieces all values are float32: the residual stream, what is added to it, and normed values. Inside,
a piece may compute in the graph's float type. The stream's values are named ``hidden_states.0`` (embedding) to
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
    stream = _name_stream(pieces.embed(g, inputs.token_ids(g)), 0)
    attention = pieces.attention(g)
    update: ir.Value | None = None  # a layer's experts' output, which the next norm adds to the stream
    for layer in range(g.config.num_hidden_layers):
        update, stream = _layer(g, pieces, attention, layer, update, stream)
    x, stream = _add_and_norm(g, update, stream, "model.norm.weight")
    _name_stream(stream, g.config.num_hidden_layers)
    pieces.head(g, x)


def embedding_part(g: GraphBuilder, pieces: Composition) -> None:
    """Emits the embedding alone: ``input_ids`` to ``hidden_states``."""
    hidden = pieces.embed(g, inputs.token_ids(g))
    g.output(hidden, "hidden_states", ir.DataType.FLOAT, ["batch", "sequence", g.config.hidden_size])


def layer_part(g: GraphBuilder, pieces: Composition, layer: int) -> None:
    """Emits one layer alone: ``hidden_states``, the stream before it, to ``next_hidden_states`` after it."""
    hidden = inputs.hidden_states(g)
    update, stream = _layer(g, pieces, pieces.attention(g), layer, None, hidden)
    shape: list[int | str] = ["batch", "sequence", g.config.hidden_size]
    g.output(g.op("Add", stream, update), "next_hidden_states", ir.DataType.FLOAT, shape)


def head_part(g: GraphBuilder, pieces: Composition) -> None:
    """Emits the last norm and the head: ``hidden_states`` to ``logits``."""
    pieces.head(g, rms_norm(g, inputs.hidden_states(g), "model.norm.weight"))


def _layer(
    g: GraphBuilder, pieces: Composition, attention: Layer, layer: int, update: ir.Value | None, stream: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Emits one layer.

    Args:
        g: the builder.
        pieces: which pieces.
        attention: emits the attention.
        layer: the layer.
        update: the output of the previous layer's experts, which is not added to the stream yet; None before the first.
        stream: the residual stream.

    Returns:
        The output of this layer's experts, and the stream to which it has to be added.
    """
    with g.scope(f"layers.{layer}"):
        source = f"model.layers.{layer}"
        x, stream = _add_and_norm(g, update, stream, f"{source}.input_layernorm.weight")
        if update is not None:
            _name_stream(stream, layer)
        update = attention(g, layer, x)
        x, stream = add_rms_norm(g, update, stream, f"{source}.post_attention_layernorm.weight")
        return pieces.moe(g, layer, x), stream


def _add_and_norm(g: GraphBuilder, update: ir.Value | None, stream: ir.Value, source: str) -> tuple[ir.Value, ir.Value]:
    """(norm(stream + update), stream + update)."""
    if update is None:  # before the first layer there is nothing to add
        return rms_norm(g, stream, source), stream
    return add_rms_norm(g, update, stream, source)


def _name_stream(hidden: ir.Value, layers: int) -> ir.Value:
    hidden.name = f"hidden_states.{layers}"
    return hidden
