"""Checkpoint to ONNX: builds a target's graph, writes its weights, then the model that refers to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from gptoss_convert import writing
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import OutputError
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.decoder import decoder
from gptoss_convert.graph.head import Logits
from gptoss_convert.output import link
from gptoss_convert.schemes import Quantisation
from gptoss_convert.targets import Target
from gptoss_convert.weights import layout

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"


@dataclass(frozen=True)
class Export:
    """What an export made.

    Attributes:
        model: the model file.
        weights: its external data, and the report on it.
        short: models of one layer, the first, over the same external data, one for each kind of attention: what can be
            run in little memory. None where there are no more layers than kinds.
    """

    model: Path
    weights: writing.WrittenWeights
    short: tuple[Path, ...]


def export(
    checkpoint: Checkpoint,
    target: Target,
    quantisation: Quantisation,
    folder: Path,
    *,
    logits: Logits = "last",
    settings: writing.Settings | None = None,
    kept: Path | None = None,
) -> Export:
    """Writes model.onnx and its external data into a folder.

    Args:
        checkpoint: the open checkpoint.
        target: which graph.
        quantisation: scheme by tensor group.
        folder: an existing folder; files of these names are replaced.
        logits: of the last position (to generate) or of all (to measure).
        settings: how to write.
        kept: an existing folder in which the external data grows, to be there for another try; ``None``: ``folder``.

    Raises:
        OutputError: the folder cannot be written or is full.
    """
    g = _built(checkpoint, target, quantisation, logits)
    written = writing.write(g.recipes, kept or folder, WEIGHTS_FILE, settings)
    if kept is not None:
        for name in written.files:
            link(kept / name, folder / name)
    model, short = _save(g, target, written, folder / MODEL_FILE), list[Path]()
    kinds = sorted(set(checkpoint.config.layer_types))
    if len(kinds) < checkpoint.config.num_hidden_layers:
        for kind in kinds:
            config = replace(checkpoint.config, num_hidden_layers=1, layer_types=(kind,))
            cut = _built(Checkpoint(checkpoint.path, config, checkpoint.tensors), target, quantisation, logits)
            short.append(_save(cut, target, written, folder / f"{kind}.onnx"))
    return Export(model, written, tuple(short))


def weights_size(checkpoint: Checkpoint, target: Target, quantisation: Quantisation) -> int:
    """Bytes that the external data would have, of headers and dimensions alone: no weight is read."""
    return sum(layout(_built(checkpoint, target, quantisation, "last").recipes, WEIGHTS_FILE)[1].values())


def _built(checkpoint: Checkpoint, target: Target, quantisation: Quantisation, logits: Logits) -> GraphBuilder:
    g = GraphBuilder(checkpoint, quantisation, target.dtype)
    decoder(g, target.compose(quantisation, logits))
    return g


def _save(g: GraphBuilder, target: Target, written: writing.WrittenWeights, file: Path) -> Path:
    model = g.model(opset=target.opset, ir_version=target.ir_version, extents=written.extents)
    try:
        ir.save(model, file)
    except OSError as error:
        raise OutputError(f"{file}: {error.strerror or error}") from error
    return file
