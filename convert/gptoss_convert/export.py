"""Checkpoint to ONNX: builds a target's graph, writes its weights, then the model that refers to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from gptoss_convert import weights
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import OutputError
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.decoder import decoder
from gptoss_convert.graph.head import Logits
from gptoss_convert.schemes import Quantisation
from gptoss_convert.targets import Target

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Export:
    """What an export made: the model file and the report on its weights."""

    model: Path
    weights: weights.WrittenWeights


def export(
    checkpoint: Checkpoint,
    target: Target,
    quantisation: Quantisation,
    folder: Path,
    *,
    logits: Logits = "last",
    progress: Progress | None = None,
) -> Export:
    """Writes model.onnx and model.onnx.data into a folder.

    Args:
        checkpoint: the open checkpoint.
        target: which graph.
        quantisation: scheme by tensor group.
        folder: an existing folder; files of these names are replaced.
        logits: of the last position (to generate) or of all (to measure).
        progress: called with (bytes written, bytes in all).

    Raises:
        OutputError: the folder cannot be written or is full.
    """
    g = _built(checkpoint, target, quantisation, logits)
    written = weights.write(g.recipes, folder / WEIGHTS_FILE, progress)
    model = g.model(
        opset=target.opset, ir_version=target.ir_version, external=WEIGHTS_FILE, extents=written.extents
    )  # fmt: skip
    try:
        ir.save(model, folder / MODEL_FILE)
    except OSError as error:
        raise OutputError(f"{folder / MODEL_FILE}: {error.strerror or error}") from error
    return Export(folder / MODEL_FILE, written)


def weights_size(checkpoint: Checkpoint, target: Target, quantisation: Quantisation) -> int:
    """Bytes that model.onnx.data would have, of headers and dimensions alone: no weight is read."""
    return weights.layout(_built(checkpoint, target, quantisation, "last").recipes)[1]


def _built(checkpoint: Checkpoint, target: Target, quantisation: Quantisation, logits: Logits) -> GraphBuilder:
    g = GraphBuilder(checkpoint, quantisation, target.dtype)
    decoder(g, target.compose(quantisation, logits))
    return g
