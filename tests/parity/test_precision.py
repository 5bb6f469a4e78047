"""Which parts of a float16 graph compute in float32, by the types that onnxruntime infers.

The CPU computes most of a float16 graph in float32 and rounds afterwards, so numbers hide what types show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnxruntime
import pytest

from gptoss_convert import targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import write_checkpoint
from tests.tiers import mostly_integration

from .conftest import SMALL

FLOAT32 = "tensor(float)"
WAYS = ("as shipped", "first run")  # as composed for the device, and for a conversion's first run on the CPU
GRAPHS = [(name, preset, way) for name in ("directml", "cuda") for preset in targets.load(name).presets for way in WAYS]
# Operators that overflow in float16 or count beyond its integers: norms' squares, positions, SwiGLU.
IN_FLOAT32 = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization")
IN_FLOAT32 += ("CumSum", "Less", "Greater", "Abs", "Clip", "Sigmoid", "TopK")


@dataclass(frozen=True)
class Graph:
    """A graph and the type of every value in it."""

    nodes: list[onnx.NodeProto]
    types: Mapping[str, str]

    def maker(self, value: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if value in node.output)

    def readers(self, value: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if value in node.input]


FAST = {("directml", "balanced", "as shipped"), ("cuda", "lossless", "first run")}


@pytest.fixture(scope="module", params=mostly_integration(GRAPHS, fast=FAST), ids="-".join)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("graph")
    source = write_checkpoint(folder / "checkpoint", SMALL | {"intermediate_size": 128})
    name, preset, way = request.param
    target = targets.load(name)
    if way == "first run":
        assert target.on_cpu is not None
        target = replace(target, compose=target.on_cpu)
    (folder / "graph").mkdir()
    made = export(Checkpoint.open(source), target, resolve(target.presets, preset), folder / "graph").model
    return typed(made)


def typed(file: Path) -> Graph:
    """The graph with every value as an output, because onnxruntime reports the types of outputs."""
    model = onnx.load(file, load_external_data=False)
    known = {value.name for value in model.graph.output}
    values = [name for node in model.graph.node for name in node.output if name and name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")  # CUDA's codes are in an order of its own
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    types = {node.name: node.type for node in (*session.get_inputs(), *session.get_outputs())}
    names = {onnx.TensorProto.FLOAT: FLOAT32, onnx.TensorProto.FLOAT16: "tensor(float16)"}
    weights = {each.name: names.get(each.data_type, str(each.data_type)) for each in model.graph.initializer}
    return Graph(list(model.graph.node), {**weights, **types})


def test_the_graph_has_float16_and_float32_values(graph: Graph) -> None:
    assert set(graph.types.values()) >= {FLOAT32, "tensor(float16)"}
    assert {node.op_type for node in graph.nodes} >= set(IN_FLOAT32[:2])


def test_the_residual_stream_is_float32(graph: Graph) -> None:
    stream = [name for name in graph.types if name.startswith("hidden_states.")]
    assert len(stream) == SMALL["num_hidden_layers"] + 1
    assert {graph.types[name] for name in stream} == {FLOAT32}


def test_operators_that_overflow_or_count_are_float32(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op_type in IN_FLOAT32:
            numbers = [graph.types[name] for name in node.input if "float" in graph.types[name]]
            assert set(numbers) <= {FLOAT32}, f"{node.name}: {numbers}"


def test_no_float32_value_passes_through_float16(graph: Graph) -> None:
    """Casting back does not restore lost digits: only products may be float16 before they join the stream."""
    for node in graph.nodes:
        if node.op_type == "Cast" and graph.types[node.output[0]] == FLOAT32 and "float" in graph.types[node.input[0]]:
            before = graph.maker(node.input[0]) if node.input[0] in made(graph) else None
            assert before is None or before.op_type != "Cast", f"{node.name}: float32 through float16"


def made(graph: Graph) -> set[str]:
    return {name for node in graph.nodes for name in node.output}


def test_the_router_computes_in_float32(graph: Graph) -> None:
    """From the norm's output to its logits, because near ties decide between experts."""
    for layer in range(SMALL["num_hidden_layers"]):
        (product,) = graph.readers(f"model.layers.{layer}.mlp.router.weight")
        assert product.op_type == "MatMul"
        assert graph.maker(product.input[0]).op_type == "SkipSimplifiedLayerNormalization"
        (total,) = graph.readers(product.output[0])
        assert total.op_type == "Add"
        assert {graph.types[name] for name in (*product.input, *total.input, *total.output)} == {FLOAT32}
        readers = graph.readers(total.output[0])
        if {reader.op_type for reader in readers} == {"ReduceMax", "Sub"}:  # less each token's largest, still float32
            (below,) = (reader.output[0] for reader in readers if reader.op_type == "Sub")
            assert graph.types[below] == FLOAT32
            readers = graph.readers(below)
        assert [reader.op_type for reader in readers] in (["TopK"], ["Cast"])


def test_factors_and_scales_of_embeddings_are_float32(graph: Graph) -> None:
    """Factors, and scales of integer rows, are as large as the row, which can be any size."""
    sized = [name for name in graph.types if name.endswith("_factors") or name == "model.embed_tokens.weight_scales"]
    assert len(sized) >= 2 * SMALL["num_hidden_layers"] + 1
    assert {graph.types[name] for name in sized} == {FLOAT32}
