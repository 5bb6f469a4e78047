"""Predicts for each node of a model whether it runs on DirectML, and if not, why.

Follows onnxruntime's rules of placement: a kernel for exactly the since version that the model's opset selects, types
that its constraints allow, attributes that it accepts, and shape arithmetic that stays on the CPU. Constants are
folded, but other fusions and inlining that onnxruntime does when it loads a model are not predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import onnx_ir as ir

from gptoss_convert.placement import rules
from gptoss_convert.placement.arithmetic import find_shape_arithmetic
from gptoss_convert.placement.signatures import Types, at
from gptoss_convert.placement.table import Kernel, Signature, Table, load_table

_NO_DEVICE_TYPE = ("string", "bfloat16", "float8", "float4", "complex", "int2")  # no DML_TENSOR_DATA_TYPE
_CONTROL_FLOW = ("If", "Loop", "Scan")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")


class Device(StrEnum):
    """Where a node runs."""

    DIRECTML = "directml"
    CPU = "cpu"
    FOLDED = "folded"  # computed once, when the session is created


class Reason(StrEnum):
    """Why a node does not run on DirectML, or what to note if it does."""

    BROKEN = "breaks on DirectML"
    NOT_REGISTERED = "not registered"
    VERSION = "not in this version"
    TYPE = "not for this type"
    ATTRIBUTE = "not with these attributes"
    CONTROL_FLOW = "control flow"
    SHAPE_ARITHMETIC = "shape arithmetic"
    HOST_INPUT = "reads an input on the CPU that is not constant"
    SHAPE_INPUT = "reads a shape on the CPU"


@dataclass(frozen=True)
class Verdict:
    """The predicted device of one node.

    Attributes:
        node: its name.
        operator: "domain::operator".
        device: where it runs.
        reason: why, or None if it simply runs on DirectML.
        detail: the reason in words.
    """

    node: str
    operator: str
    device: Device
    reason: Reason | None = None
    detail: str = ""


def judge(model: ir.Model, table: Table | None = None) -> list[Verdict]:
    """Predicts the device of each node except Constants; a node is followed by those of its branches and bodies.

    Args:
        model: the model; its weights are not read.
        table: of kernels; by default the one that ships.

    Raises:
        ConversionError: the table is missing or damaged.

    Source: onnxruntime 1.21, ExecutionProvider.cpp of DmlExecutionProvider; measured on 1.24.4.
    """
    table = table or load_table()
    return _Judge(table, Types(table, dict(model.graph.opset_imports))).graph(model.graph)


class _Judge:
    def __init__(self, table: Table, types: Types) -> None:
        self._table = table
        self._types = types
        self._constants: set[ir.Value] = set()
        self._shapes: set[ir.Value] = set()  # values that depend only on shapes and constants

    def graph(self, graph: ir.Graph) -> list[Verdict]:
        """Verdicts of a graph and its subgraphs, in order."""
        self._constants.update(set(graph.initializers.values()) - set(graph.inputs))
        verdicts: dict[ir.Node, Verdict] = {}
        inner: dict[ir.Node, list[Verdict]] = {}
        kernels: dict[ir.Node, Kernel] = {}
        for node in graph:
            inner[node] = [verdict for body in _bodies(node) for verdict in self.graph(body)]
            self._types.infer(node)
            if node.op_type == "Constant" and node.domain == "":
                self._constants.update(node.outputs)
            elif self._is_folded(node):
                self._constants.update(node.outputs)
                verdicts[node] = _verdict(node, Device.FOLDED)
            else:
                if self._follows_from_shapes(node):
                    self._shapes.update(node.outputs)
                verdicts[node], kernel = self._node(node)
                if kernel is not None:
                    kernels[node] = kernel
        for node in find_shape_arithmetic(graph, kernels, self._constants, self._types):
            if verdicts[node].device is Device.DIRECTML:
                detail = "its inputs are shapes, which are on the CPU"
                verdicts[node] = _verdict(node, Device.CPU, Reason.SHAPE_ARITHMETIC, detail)
        return [each for node in verdicts for each in (self._add_host_reason(node, verdicts, kernels), *inner[node])]

    def _is_folded(self, node: ir.Node) -> bool:
        """Whether onnxruntime computes it when it loads the model; it never folds DequantizeLinear."""
        if node.op_type in (*_CONTROL_FLOW, *_RANDOM, "DequantizeLinear"):
            return False
        if node.op_type == "Shape" and node.inputs and _is_static(node.inputs[0]):
            return True
        given = [value for value in node.inputs if value is not None]
        return bool(given) and self._constants.issuperset(given)

    def _follows_from_shapes(self, node: ir.Node) -> bool:
        if node.op_type in (*_CONTROL_FLOW, *_RANDOM):
            return False
        given = [value for value in node.inputs if value is not None]
        known = bool(given) and all(value in self._constants or value in self._shapes for value in given)
        return known or node.op_type in ("Shape", "Size")

    def _node(self, node: ir.Node) -> tuple[Verdict, Kernel | None]:
        found = self._types.signature(node)
        row, missing = self._kernel(node, found)
        if row is None or found is None:
            return missing, None
        if node.op_type in _CONTROL_FLOW:
            detail = "onnxruntime runs it, but onnxruntime-genai captures graphs on DirectML and rejects such a model"
            return _verdict(node, Device.DIRECTML, Reason.CONTROL_FLOW, detail), row
        if wrong := self._wrong_type(node, found, row):
            return _verdict(node, Device.CPU, Reason.TYPE, wrong), None
        if wrong := self._wrong_device_type(node):
            return _verdict(node, Device.CPU, Reason.TYPE, wrong), row
        if wrong := rules.why_refused(row.query, node):
            return _verdict(node, Device.CPU, Reason.ATTRIBUTE, wrong), row
        if wrong := rules.why_broken(node):
            return _verdict(node, Device.DIRECTML, Reason.BROKEN, wrong), row
        return self._find_measured_failure(node, found, row) or _verdict(node, Device.DIRECTML), row

    def _find_measured_failure(self, node: ir.Node, found: Signature, row: Kernel) -> Verdict | None:
        for entry in self._table.exceptions(row):
            for name, value in _iter_typed_values(node, found):
                kind = _short_type(self._types.of(value) or "")
                if kind in entry["types"].get(name, ()):
                    breaks = entry["effect"] == "breaks"
                    device, reason = (Device.DIRECTML, Reason.BROKEN) if breaks else (Device.CPU, Reason.TYPE)
                    return _verdict(node, device, reason, f"{name} is {kind}: {entry['reason']}")
        return None

    def _kernel(self, node: ir.Node, found: Signature | None) -> tuple[Kernel | None, Verdict]:
        """The kernel, and the verdict if there is none."""
        versions = self._table.versions(node.domain, node.op_type)
        row = self._table.kernel(node.domain, node.op_type, found.since) if found else None
        reason = Reason.VERSION if versions else Reason.NOT_REGISTERED
        detail = "DirectML has no such kernel"
        if versions:
            selected = found.since if found else "none"
            known = ", ".join(map(str, versions))
            detail = f"opset {self._types.opset(node.domain)} selects version {selected}, registered: {known}"
        if node.op_type in _CONTROL_FLOW:
            reason = Reason.CONTROL_FLOW
        return row, _verdict(node, Device.CPU, reason, detail)

    def _wrong_type(self, node: ir.Node, found: Signature, row: Kernel) -> str | None:
        for name, value in _iter_typed_values(node, found):
            kind = self._types.of(value)
            if name in row.types and kind is not None and kind not in row.types[name]:
                return f"{name} is {_short_type(kind)}; registered: {', '.join(map(_short_type, row.types[name]))}"
        return None

    def _wrong_device_type(self, node: ir.Node) -> str | None:
        for value in (*node.inputs, *node.outputs):
            kind = _short_type(self._types.of(value) or "")
            if kind.startswith(_NO_DEVICE_TYPE):
                return f"DirectML has no {kind}"
        return None

    def _add_host_reason(
        self, node: ir.Node, verdicts: Mapping[ir.Node, Verdict], kernels: Mapping[ir.Node, Kernel]
    ) -> Verdict:
        """The verdict, with a reason if a kernel on DirectML reads an input on the CPU that is not constant."""
        verdict = verdicts[node]
        if verdict.device is not Device.DIRECTML or verdict.reason is not None:
            return verdict
        given = {index: node.inputs[index] for index in kernels[node].host if rules.has_input(node, index)}
        late = {index: value for index, value in given.items() if value is not None and value not in self._constants}
        for index, value in late.items():
            if value not in self._shapes:
                detail = f"input {index} ({value.name}): a captured graph keeps its first value, or throws"
                return _verdict(node, Device.DIRECTML, Reason.HOST_INPUT, detail)
        for index, value in late.items():
            detail = f"input {index} ({value.name}) depends on shapes, which are fixed in a captured graph"
            return _verdict(node, Device.DIRECTML, Reason.SHAPE_INPUT, detail)
        return verdict


def _verdict(node: ir.Node, device: Device, reason: Reason | None = None, detail: str = "") -> Verdict:
    return Verdict(node.name or "", f"{node.domain or 'ai.onnx'}::{node.op_type}", device, reason, detail)


def _is_static(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and all(isinstance(dim, int) for dim in value.shape)


def _iter_typed_values(node: ir.Node, found: Signature) -> Iterator[tuple[str, ir.Value | None]]:
    """Each input and output, with the name of its type constraint."""
    for names, values in ((found.inputs, node.inputs), (found.outputs, node.outputs)):
        for index, value in enumerate(values):
            yield at(names, index), value


def _short_type(kind: str) -> str:
    return kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else kind


def _bodies(node: ir.Node) -> list[ir.Graph]:
    bodies: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            bodies.append(attribute.as_graph())
        elif isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPHS:
            bodies.extend(attribute.as_graphs())
    return bodies
