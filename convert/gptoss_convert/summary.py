"""Summary of a graph for ``gptoss inspect``: nodes by operator, weights by type, inputs, outputs, where nodes run.

Knows ONNX files; reads no weights. :mod:`gptoss_convert.placement` decides where a node runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from gptoss_convert.placement import GraphPlacement, predict_placement
from gptoss_runtime.errors import ArtifactError


@dataclass(frozen=True)
class GraphSummary:
    """A graph in figures.

    Attributes:
        opsets: version by domain; "" is ai.onnx.
        ir_version: of the file.
        nodes: number of nodes.
        operators: nodes by "domain::operator", most frequent first.
        weight_bytes: size of the initializers by dtype.
        inputs: dtype and shape by name, without those of the cache.
        outputs: the same.
        cached: number of key and value tensors in the cache.
        placement: where the nodes run on DirectML; None if that was not asked for.
    """

    opsets: dict[str, int]
    ir_version: int
    nodes: int
    operators: dict[str, int]
    weight_bytes: dict[str, int]
    inputs: dict[str, str]
    outputs: dict[str, str]
    cached: int
    placement: GraphPlacement | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "placement": self.placement.to_dict() if self.placement else None}


def summarise(model: Path, *, directml: bool = False) -> GraphSummary:
    """Reads a graph.

    Args:
        model: the .onnx file.
        directml: also find out where the nodes run on DirectML.

    Raises:
        ArtifactError: it is not a readable ONNX file.
        ConversionError: the table of DirectML's kernels is missing or damaged.
    """
    try:
        loaded = ir.load(model)
    except Exception as error:  # onnx-ir and protobuf raise many kinds
        raise ArtifactError(f"{model} is not a readable ONNX file: {error}", remedy="Convert again.") from error
    graph = loaded.graph
    operators = Counter(f"{node.domain or 'ai.onnx'}::{node.op_type}" for node in graph.all_nodes())
    weights: Counter[str] = Counter()
    for value in graph.initializers.values():
        if value.const_value is not None:
            weights[value.const_value.dtype.name.lower()] += value.const_value.nbytes
    return GraphSummary(
        opsets=dict(graph.opset_imports),
        ir_version=loaded.ir_version,
        nodes=sum(operators.values()),
        operators=dict(operators.most_common()),
        weight_bytes=dict(weights.most_common()),
        inputs=_describe(graph.inputs, "past_key_values."),
        outputs=_describe(graph.outputs, "present."),
        cached=sum((value.name or "").startswith("past_key_values.") for value in graph.inputs),
        placement=_place(model, loaded) if directml else None,
    )


def _place(model: Path, loaded: ir.Model) -> GraphPlacement:
    try:
        return predict_placement(loaded)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:  # readable, but not a valid graph
        raise ArtifactError(f"{model} has a malformed node: {error}", remedy="Convert again.") from error


def _describe(values: Any, cache: str) -> dict[str, str]:
    return {
        value.name: f"{value.dtype.name.lower() if value.dtype else '?'} {value.shape}"
        for value in values
        if not value.name.startswith(cache)
    }
