"""Checkpoint to ONNX: builds a target's graph, writes its weights, then the model that refers to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from gptoss_convert import writing
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import OutputError
from gptoss_convert.graph.builder import GraphBuilder
from gptoss_convert.graph.decoder import decoder
from gptoss_convert.graph.head import Logits
from gptoss_convert.output import link_or_copy
from gptoss_convert.schemes import Quantisation
from gptoss_convert.targets import Target
from gptoss_convert.weights import Extent, plan_layout

MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        model: the model file.
        weights: its external data files, and a report by tensor group.
    """

    model: Path
    weights: writing.WrittenWeights


def export(
    checkpoint: Checkpoint,
    target: Target,
    quantisation: Quantisation,
    folder: Path,
    *,
    logits: Logits = "last",
    write_options: writing.WriteOptions | None = None,
    kept: Path | None = None,
) -> Export:
    """Writes model.onnx and its external data into a folder.

    Args:
        checkpoint: the open checkpoint.
        target: the target, which composes the graph.
        quantisation: scheme by tensor group.
        folder: an existing folder; files of the same names are replaced.
        logits: of the last position (to generate) or of all (to measure).
        write_options: how to write the weights.
        kept: an existing folder in which the external data is written, so that a later run can resume it; ``None``:
            ``folder``.

    Raises:
        OutputError: the folder cannot be written or is full.
    """
    g = _build(checkpoint, target, quantisation, logits)
    written = writing.write(g.recipes, kept or folder, WEIGHTS_FILE, write_options)
    if kept is not None:
        for name in written.files:
            link_or_copy(kept / name, folder / name)
    return Export(_save(g, target, written, folder / MODEL_FILE), written)


def extents(
    checkpoint: Checkpoint, target: Target, quantisation: Quantisation, file_limit: int | None = None
) -> dict[str, Extent]:
    """The place of every initializer in the files that :func:`export` writes; no weight is read."""
    return plan_layout(_build(checkpoint, target, quantisation, "last").recipes, WEIGHTS_FILE, file_limit)[0]


def weights_size(checkpoint: Checkpoint, target: Target, quantisation: Quantisation) -> int:
    """Size of the external data in bytes, computed from headers and dimensions; no weight is read."""
    return sum(plan_layout(_build(checkpoint, target, quantisation, "last").recipes, WEIGHTS_FILE)[1].values())


def _build(checkpoint: Checkpoint, target: Target, quantisation: Quantisation, logits: Logits) -> GraphBuilder:
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
