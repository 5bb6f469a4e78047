"""The reader of ONNX files finds or rejects everything that another parser could find in a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from gptoss_runtime.artifact.onnx_fields import FIELDS, REPEATED
from gptoss_runtime.artifact.onnx_file import ExternalSpan, GraphError, find_external_data


def external(name: str, location: str = "w.data", **more: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "length": "16", **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(*nodes: onnx.NodeProto, **parts: Any) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [], [], parts.pop("initializers", []))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], **parts)


def branch(*nodes: onnx.NodeProto, initializers: Any = ()) -> onnx.NodeProto:
    graph = helper.make_graph(list(nodes), "branch", [], [], list(initializers))
    return helper.make_node("If", ["c"], ["o"], then_branch=graph, else_branch=graph)


def function(*nodes: onnx.NodeProto, domain: str = "com.microsoft") -> onnx.FunctionProto:
    return helper.make_function(domain, "f", ["x"], ["y"], list(nodes), [helper.make_opsetid("", 21)])


FOREIGN = helper.make_node("Anything", ["x"], ["y"], domain="evil")
COMPILED = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/tmp/x.bin")


def with_training() -> onnx.ModelProto:
    built = model()
    built.training_info.add()
    return built


def with_metadata(where: Callable[[onnx.ModelProto], Any]) -> onnx.ModelProto:
    built = model(helper.make_node("Abs", ["x"], ["y"]))
    where(built).metadata_props.add(key="ort_config", value="{}")
    return built


def with_default(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """A function's attribute with a tensor as its default."""
    body = function(helper.make_node("Abs", ["x"], ["y"]))
    body.attribute_proto.add(name="a", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
    return model(functions=[body])


def with_default_graph(node: onnx.NodeProto) -> onnx.ModelProto:
    body = function(helper.make_node("Abs", ["x"], ["y"]))
    graph = helper.make_graph([node], "default", [], [])
    body.attribute_proto.add(name="a", type=onnx.AttributeProto.GRAPH).g.CopyFrom(graph)
    return model(functions=[body])


def with_import(domain: str) -> onnx.ModelProto:
    built = model()
    built.opset_import.add(domain=domain, version=1)
    return built


REFUSED = {
    "an operator of another domain": (model(FOREIGN), "an operator of the domain 'evil'"),
    "in a branch": (model(branch(FOREIGN)), "domain 'evil'"),
    "in a branch of a branch": (model(branch(branch(FOREIGN))), "domain 'evil'"),
    "in a list of graphs": (
        model(helper.make_node("Scan", [], [], graphs=[helper.make_graph([FOREIGN], "g", [], [])])),
        "domain 'evil'",
    ),
    "in a function": (model(functions=[function(FOREIGN)]), "domain 'evil'"),
    "in a branch in a function": (model(functions=[function(branch(FOREIGN))]), "domain 'evil'"),
    "in a default of a function's": (with_default_graph(FOREIGN), "domain 'evil'"),
    "a function of another domain": (model(functions=[function(domain="evil")]), "a function of the domain 'evil'"),
    "an import": (with_import("evil"), "an import of the domain 'evil'"),
    "Microsoft, almost": (with_import("com.microsoft.extensions"), "com.microsoft.extensions"),
    "PyTorch": (model(helper.make_node("ATen", ["x"], ["y"], domain="org.pytorch.aten")), "org.pytorch.aten"),
    "a compiled node": (model(COMPILED), "a node EPContext"),
    "a compiled node in a branch": (model(branch(COMPILED)), "a node EPContext"),
    "Python": (model(helper.make_node("PythonOp", ["x"], ["y"], domain="com.microsoft")), "a node PythonOp"),
    "training": (with_training(), "a training graph"),
    "settings": (with_metadata(lambda built: built), "ort_config"),
    "settings in the graph": (with_metadata(lambda built: built.graph), "ort_config"),
    "settings in a node": (with_metadata(lambda built: built.graph.node[0]), "ort_config"),
    "packed weights": (model(initializers=[external("w", prepacked_0="k|0|16|0")]), "prepacked_0"),
    "a base path": (model(initializers=[external("w", basepath="/etc")]), "basepath"),
}


@pytest.mark.parametrize("built", REFUSED)
def test_graphs_that_do_more_than_compute_are_rejected(built: str) -> None:
    found, words = REFUSED[built]
    with pytest.raises(GraphError, match=words):
        find_external_data(found.SerializeToString())


def everywhere() -> onnx.ModelProto:
    """A model with an external tensor, each in a different file, wherever ONNX allows a tensor."""
    sparse = onnx.SparseTensorProto(values=external("v", "sparse-values"), indices=external("i", "sparse-indices"))
    built = with_default(external("d", "default"))
    nodes = [
        helper.make_node("Constant", [], ["a"], value=external("a", "attribute")),
        helper.make_node("Constant", [], ["b"], sparse_value=sparse),
        helper.make_node("Many", [], ["c"], domain="com.microsoft", tensors=[external("c", "attributes")]),
        branch(helper.make_node("Constant", [], ["d"], value=external("e", "branch-attribute"))),
        branch(initializers=[external("f", "branch")]),
    ]
    built.graph.node.extend(nodes)
    built.graph.initializer.append(external("g", "initializer"))
    built.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=external("h", "graph-values"), indices=external("i", "graph-indices"))
    )
    built.functions.append(function(helper.make_node("Constant", [], ["y"], value=external("j", "function"))))
    return built


def test_external_data_is_found_everywhere() -> None:
    assert {span.location for span in find_external_data(everywhere().SerializeToString())} == {
        *("default", "attribute", "sparse-values", "sparse-indices", "attributes", "branch-attribute", "branch"),
        *("initializer", "graph-values", "graph-indices", "function"),
    }


def test_the_tables_match_onnx() -> None:
    names = {"Opset": "OperatorSetIdProto", "Annotation": "TensorAnnotation"}
    assert FIELDS.keys() == REPEATED.keys()
    for kind, fields in FIELDS.items():
        described = getattr(onnx, names.get(kind, f"{kind}Proto")).DESCRIPTOR.fields
        assert {field.number: field.name for field in described} == {at: name for at, (name, _) in fields.items()}
        assert {field.name for field in described if field.is_repeated} == REPEATED[kind]
        inner = {"StringStringEntryProto": "Entry"} | {known: kind for kind, known in names.items()}
        for field in described:  # every known message is read
            if field.message_type is not None:
                name = field.message_type.name
                expected = inner.get(name, name.removesuffix("Proto"))
                if name == "TrainingInfoProto":
                    expected = "Training"
                found = fields[field.number][1]
                assert found == (expected if expected in FIELDS or expected in ("Entry", "Training") else "")


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


IR = b"\x08\x0b"
NODE = field(1, field(4, b"Abs") + field(7, b"evil"))
HIGH = varint((1 << 32) + (7 << 3 | 2))  # protobuf drops the bits above 32: field 7, the graph
PARTED = field(13, field(1, b"location") + field(2, b"/etc/passwd"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (IR + field(2, b"ORTM"), "own format"),
        (IR + HIGH + varint(len(NODE)) + NODE, "not ONNX"),
        (IR + b"\x3a" + varint(len(NODE) | 1 << 35) + NODE, "not ONNX"),
        (IR + field(7, b"") + field(7, NODE), "duplicate field Model.graph"),
        (IR + field(7, field(1, field(7, b"") + field(7, b"evil"))), "duplicate field Node.domain"),
        (IR + field(7, field(1, field(5, field(5, PARTED) + field(5, PARTED)))), "duplicate field Attribute.t"),
        (IR + field(7, field(5, PARTED + PARTED)), "duplicate key 'location'"),
        (IR + field(27, b""), "unknown field 27 in Model"),
        (IR + field(7, field(3, b"")), "unknown field 3 in Graph"),
        (IR + b"\x38\x01", "Model.graph is a number"),
        (IR + b"\x3b\x3c", "not ONNX"),
        (IR + b"\x00\x00", "unknown field 0"),
        (IR + field(14, b"\x08\x01"), "a number"),
        (IR + field(14, field(3, b"")), "more than key and value"),
        (IR + field(7, field(1, field(7, b"\xff"))), "utf-8"),
        (IR + b"\x3a\x05\x0a", "truncated"),
        (IR + b"\x3a", "truncated"),
        (b"\xff" * 20, "not ONNX"),
    ],
)
def test_ambiguous_files_are_rejected(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_external_data(data)


@pytest.mark.parametrize("offset", ["\uff11", "1_0", " 1", "0x10", "1e3", "", "9" * 20])
def test_offsets_must_be_decimal_digits(offset: str) -> None:
    built = model(initializers=[external("w", offset=offset)])
    with pytest.raises(ValueError, match="offset or a length"):
        find_external_data(built.SerializeToString())


EMPTY = 4_000_000


@pytest.mark.parametrize(
    "graph",
    [
        b"\x0a\x00" * EMPTY,
        field(1, b"\x0a\x00" * EMPTY),
        field(1, b"\x2a\x00" * EMPTY),
        field(1, field(5, b"\x40\x01" * EMPTY)),
        field(5, b"\x08\x01" * EMPTY),
    ],
    ids=["nodes", "inputs", "attributes", "integers", "dimensions"],
)
def test_work_is_bounded(graph: bytes) -> None:
    data = IR + field(7, graph)
    start = time.process_time()
    with pytest.raises(ValueError, match="more than 500,000 fields"):
        find_external_data(data)
    assert time.process_time() - start < 3  # half a second on an idle machine; without a limit, ten times as long


def test_depth_is_bounded() -> None:
    graph = b""
    for _ in range(2000):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(ValueError, match="nested too deeply"):
        find_external_data(IR + field(7, graph))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_hides_nothing(data: st.DataObject) -> None:
    """Protobuf's parser finds the same external files and domains in every file that is accepted."""
    content = bytearray(everywhere().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        found = find_external_data(bytes(content))
    except ValueError:
        return
    try:
        parsed = onnx.ModelProto.FromString(bytes(content))
    except Exception:  # protobuf's own exception: it rejects more
        return
    tensors = list(_tensors(parsed))
    assert {span.location for span in found} == {
        entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"
    } | ({""} if any(tensor.external_data and not _located(tensor) for tensor in tensors) else set())
    assert ExternalSpan("") not in found or any(not _located(tensor) for tensor in tensors)
    assert {node.domain for node in _messages(parsed) if isinstance(node, onnx.NodeProto)} <= {
        "",
        "ai.onnx",
        "com.microsoft",
    }


def _located(tensor: onnx.TensorProto) -> bool:
    return any(entry.key == "location" for entry in tensor.external_data)


def _tensors(message: Any) -> Any:
    return (one for one in _messages(message) if isinstance(one, onnx.TensorProto))


def _messages(message: Any) -> Any:
    yield message
    for described, value in message.ListFields():
        if described.message_type is not None:
            for one in value if described.is_repeated else [value]:
                yield from _messages(one)
