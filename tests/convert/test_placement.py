"""The prediction of DirectML placement, on small graphs with known answers and on every target's graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from gptoss_convert import targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import ConversionError
from gptoss_convert.export import export
from gptoss_convert.placement import Device, GraphPlacement, Reason, judge, predict_placement
from gptoss_convert.placement.table import load_table
from gptoss_convert.schemes import resolve
from gptoss_convert.summary import summarise
from gptoss_runtime.cli.main import app
from gptoss_runtime.errors import ArtifactError
from tools.placement_table import generate as generator
from tools.placement_table.sources import parse_kernels

MICROSOFT = "com.microsoft"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(","), outputs.split(","), **attributes)


def model(
    *nodes: onnx.NodeProto, opset: int = 21, constants: dict[str, Any] | None = None, **inputs: tuple[int, Any]
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def seen(made: ir.Model) -> list[tuple[str, str | None]]:
    return [(verdict.device.value, verdict.reason and verdict.reason.name) for verdict in judge(made)]


X = (FLOAT, ["n", 4])
ON_DIRECTML = ("directml", None)


def test_a_version_has_to_be_registered_exactly() -> None:
    scatter = node("ScatterElements", "x,i,x")
    assert seen(model(scatter, opset=17, x=X, i=(INT64, ["n", 4]))) == [ON_DIRECTML]
    assert seen(model(scatter, opset=18, x=X, i=(INT64, ["n", 4]))) == [("cpu", "VERSION")]
    verdict = judge(model(scatter, opset=18, x=X, i=(INT64, ["n", 4])))[0]
    assert verdict.detail == "opset 18 selects version 18, registered: 11, 13, 16"


def test_types() -> None:
    gather = node("Gather", "t,i")
    for kind, expected in (
        (FLOAT, ON_DIRECTML),
        (TensorProto.UINT4, ("cpu", "TYPE")),
        (TensorProto.BFLOAT16, ("cpu", "TYPE")),
    ):
        assert seen(model(gather, t=(kind, [8, 4]), i=(INT64, ["n"]))) == [expected]
    cast = node("Cast", "x", to=TensorProto.BFLOAT16)
    assert seen(model(cast, node("Abs", "y", "z"), x=X)) == [("cpu", "TYPE"), ("cpu", "TYPE")]
    dequantise = node("DequantizeLinear", "w,s", block_size=32)
    assert seen(model(dequantise, w=(TensorProto.UINT4, [64, 4]), s=(FLOAT, [2, 4]))) == [ON_DIRECTML]


def test_types_flow_through_contributed_operators() -> None:
    quantised = node("MatMulNBits", "x,w,s", "h", domain=MICROSOFT, K=32, N=8, bits=4, block_size=32)
    bits = node("BitwiseNot", "h")  # not for floats
    weights = {"w": np.zeros((8, 1, 16), np.uint8), "s": np.ones(8, np.float32)}
    made = model(quantised, bits, x=(FLOAT, [1, 1, 32]), constants=weights)
    assert seen(made) == [ON_DIRECTML, ("cpu", "TYPE")]


def test_operators_without_any_kernel() -> None:
    assert seen(model(node("MoE", "x,x,x", domain=MICROSOFT), x=X)) == [("cpu", "NOT_REGISTERED")]
    assert seen(model(node("Nothing", "x", domain="somewhere"), x=X)) == [("cpu", "NOT_REGISTERED")]


@pytest.mark.parametrize(
    ("inputs", "attributes", "expected"),
    [
        ("x,w,s", {}, ON_DIRECTML),
        ("x,w,s,z", {}, ON_DIRECTML),
        ("x,w,s,,,b", {}, ("directml", "BROKEN")),
        ("x,w,s,,g", {}, ("directml", "BROKEN")),
        ("x,w,s", {"bits": 2}, ("cpu", "ATTRIBUTE")),
        ("x,w,s", {"K": 40}, ("cpu", "ATTRIBUTE")),
    ],
)
def test_quantised_matmul(inputs: str, attributes: dict[str, int], expected: tuple[str, str | None]) -> None:
    shared = {"K": 32, "N": 8, "bits": 4, "block_size": 32, **attributes}
    constants = {
        **{"w": np.zeros((8, 1, 16), np.uint8), "s": np.ones(8, np.float32), "b": np.ones(8, np.float32)},
        **{"z": np.zeros(8, np.uint8), "g": np.zeros(32, np.int32)},
    }
    made = model(node("MatMulNBits", inputs, domain=MICROSOFT, **shared), x=(FLOAT, [1, 1, 32]), constants=constants)
    assert seen(made) == [expected]


def test_attention_that_would_be_silently_wrong() -> None:
    inputs = {"q": (FLOAT, [1, 1, 16]), "p": (FLOAT, [1, 2, 4, 8]), "l": (TensorProto.INT32, [1])}
    constants = {"t": np.int32(4), "sink": np.ones(2, np.float32)}
    plain = node("GroupQueryAttention", "q,q,q,p,p,l,t", "y,k,v", domain=MICROSOFT, num_heads=2, kv_num_heads=2)
    assert seen(model(plain, constants=constants, **inputs)) == [ON_DIRECTML]
    plain.input.extend(["", "", "", "", "sink"])
    plain.attribute.append(helper.make_attribute("local_window_size", 128))
    verdict = judge(model(plain, constants=constants, **inputs))[0]
    assert verdict.reason is Reason.BROKEN
    assert "head_sink, local_window_size" in verdict.detail
    assert not predict_placement(model(plain, constants=constants, **inputs)).whole


def test_outputs_that_have_a_name() -> None:
    norm = node("SkipSimplifiedLayerNormalization", "x,x,g", "y,,,sum", domain=MICROSOFT)
    constants = {"g": np.ones(4, np.float32)}
    assert seen(model(norm, x=(FLOAT, [1, 2, 4]), constants=constants)) == [ON_DIRECTML]
    norm.output[1] = "mean"
    assert seen(model(norm, x=(FLOAT, [1, 2, 4]), constants=constants)) == [("cpu", "ATTRIBUTE")]


def test_shape_arithmetic_stays_on_the_cpu() -> None:
    shape, first = node("Shape", "x", "s"), node("Gather", "s,zero", "first")
    made = model(shape, first, x=X, constants={"zero": np.int64(0)})
    assert seen(made) == [ON_DIRECTML, ("cpu", "SHAPE_ARITHMETIC")]
    placement = predict_placement(made)
    assert placement.only_shape_arithmetic
    assert "only shape arithmetic" in str(placement)
    assert seen(model(shape, first, x=(FLOAT, [2, 4]), constants={"zero": np.int64(0)})) == [("folded", None)] * 2


def test_an_input_read_on_the_cpu() -> None:
    assert seen(model(node("Reshape", "x,s"), x=X, constants={"s": np.array([4, -1])})) == [ON_DIRECTML]
    made = model(node("Reshape", "x,s"), x=X, s=(INT64, [2]))
    assert seen(made) == [("directml", "HOST_INPUT")]
    assert not predict_placement(made).whole
    assert str(predict_placement(made)).startswith("all 1 nodes on DirectML, 1 fail there")


def test_a_shape_read_on_the_cpu() -> None:
    made = model(node("Shape", "x", "s"), node("Expand", "x,s"), x=X)
    assert seen(made) == [ON_DIRECTML, ("directml", "SHAPE_INPUT")]
    assert predict_placement(made).whole
    mixed = node("Slice", "x,s,e", "y")  # one input from a shape, another from anywhere
    made = model(node("Shape", "x", "s", start=1), mixed, x=X, e=(INT64, [1]))
    assert seen(made)[-1] == ("directml", "HOST_INPUT")


@pytest.mark.parametrize(("opset", "device"), [(19, "directml"), (21, "cpu")])
def test_control_flow(opset: int, device: str) -> None:
    branches = [
        helper.make_graph([node(op, "x,x", op)], op, [], [helper.make_tensor_value_info(op, FLOAT, ["n", 4])])
        for op in ("Add", "Mul")
    ]
    choice = node("If", "c", then_branch=branches[0], else_branch=branches[1])
    made = model(choice, node("Abs", "y", "z"), opset=opset, x=X, c=(TensorProto.BOOL, []))
    assert seen(made) == [(device, "CONTROL_FLOW"), *[ON_DIRECTML] * 3]
    assert not predict_placement(made).whole


def test_measured_failures_override_the_table() -> None:
    mean = node("ReduceMean", "x")
    assert seen(model(mean, x=X)) == [ON_DIRECTML]
    assert seen(model(mean, x=(INT64, [2, 4]))) == [("directml", "BROKEN")]


PRESETS = [(name, preset) for name in targets.names() for preset in targets.load(name).presets]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_target_is_judged(name: str, preset: str, tiny: Path, tmp_path: Path) -> None:
    target = targets.load(name)
    made = export(Checkpoint.open(tiny), target, resolve(target.presets, preset, {}), tmp_path).model
    verdicts = judge(ir.load(made))
    reasons = {(verdict.operator, verdict.reason) for verdict in verdicts if verdict.reason is not None}
    if name.startswith("cpu"):
        assert (f"{MICROSOFT}::GroupQueryAttention", Reason.BROKEN) in reasons
        assert (f"{MICROSOFT}::QMoE", Reason.NOT_REGISTERED) in reasons or preset == "lossless"
    if name == "directml":
        assert predict_placement(ir.load(made)).whole
    assert sum(verdict.device is Device.DIRECTML for verdict in verdicts) > 10


def inspected(*arguments: Any) -> Any:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.integration
def test_inspect_shows_where_nodes_run(nano_artifact: Path) -> None:
    shown = json.loads(inspected(nano_artifact, "--provider", "directml", "--json", "--no-verify"))
    placement = shown["graphs"]["model.onnx"]["placement"]
    assert shown["graph"]["placement"] == placement
    assert not placement["whole"]
    assert placement["groups"][0]["severity"] == "error"
    assert placement["release"] == "v1.24.4"
    text = inspected(nano_artifact, "--provider", "directml", "--no-verify")
    assert "head_sink, local_window_size, do_rotary ignored" in text
    assert "placement" not in inspected(nano_artifact, "--no-verify")
    result = CliRunner().invoke(app, ["inspect", str(nano_artifact), "--provider", "tpu"])
    assert result.exit_code == 2
    assert "--provider directml" in result.stderr


def test_an_invalid_node(tmp_path: Path) -> None:
    ir.save(model(node("Cast", "x", to="four"), x=X), tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match="malformed node"):
        summarise(tmp_path / "model.onnx", directml=True)


def test_inspect_takes_every_graph_of_an_artifact_for_directml(nano_artifact: Path, tmp_path: Path) -> None:
    config = json.loads((nano_artifact / "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"dml": {}}]
    (tmp_path / "genai_config.json").write_text(json.dumps(config))
    for name in ("model.onnx", "model.onnx.data", "tokenizer.json"):
        (tmp_path / name).hardlink_to(nano_artifact / name)
    ir.save(model(node("Abs", "x"), x=X), tmp_path / "prefill.onnx")
    text = inspected(tmp_path, "--no-verify")
    assert "prefill.onnx: 1 nodes" in text
    assert "all 1 nodes on DirectML by the kernels of onnxruntime v1.24.4" in text


REGISTRATION = """
enum class SupportedTensorDataTypes : uint64_t { Undefined = 1LLU<<0, Float32 = 1LLU<<1, UInt8 = 1LLU<<2,
  String = 1LLU<<3, SequenceFloat32 = 1LLU<<4, Both = Float32|UInt8, All = static_cast<uint64_t>(-1), };
constexpr static std::array<const char*, 2> typeNameListPair = { "T", "Tind" };
constexpr static std::array<SupportedTensorDataTypes, 2> supportedTypeListPair = {
  SupportedTensorDataTypes::Both /* why */, SupportedTensorDataTypes::All };
constexpr static std::array<SupportedTensorDataTypes, 2> supportedTypeListSame = supportedTypeListPair;
{REG_INFO(   13, Thing, typeNameListPair, supportedTypeListPair, Graph::Yes, requiredConstantCpuInputs(1, 2))},
{REG_INFO_MS( 1, Other, typeNameListPair, supportedTypeListSame, Graph::Yes, f(), std::nullopt, QueryOther)},
"""
VERSIONS = """
namespace OnnxOperatorSet13 {
  static const int sc_sinceVer_Thing = 13; }
namespace MsftOperatorSet1 {
  static const int sc_sinceVer_Other = 1; }
"""


def test_sources_are_parsed() -> None:
    thing, other = parse_kernels(REGISTRATION, VERSIONS)
    everything = ("seq(tensor(float))", "tensor(float)", "tensor(uint8)")
    assert dict(thing.types) == {"T": ("tensor(float)", "tensor(uint8)"), "Tind": everything}
    assert (thing.domain, thing.since, thing.host, thing.query) == ("", 13, (1, 2), "")
    assert (other.domain, other.since, other.host, other.query) == (MICROSOFT, 1, (), "QueryOther")
    for registration, versions in ((REGISTRATION, ""), ("", VERSIONS), (REGISTRATION.split("{REG_INFO")[0], VERSIONS)):
        with pytest.raises(ConversionError) as caught:
            parse_kernels(registration, versions)
        assert caught.value.remedy


def test_generating_a_table(tmp_path: Path) -> None:
    for name, text in (("OperatorRegistration.cpp", REGISTRATION), ("OperatorVersions.h", VERSIONS)):
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in ("OperatorRegistration.cpp", "OperatorVersions.h")]
    out = tmp_path / "table.json"
    generator.main([*files, "--release", "v0", "-o", str(out)])
    assert [kernel[1] for kernel in json.loads(out.read_text())["kernels"]] == ["Thing", "Other"]
    kernel = {"domain": "", "op": "Thing", "since": 14, "types": {"T": ["tensor(float)"]}}
    (tmp_path / "registry.json").write_text(json.dumps({"release": "1", "kernels": [kernel], "signatures": {}}))
    generator.main([*files, "--release", "v0", "--registry", str(tmp_path / "registry.json"), "-o", str(out)])
    made = json.loads(out.read_text())
    assert made["release"] == "v1"
    assert made["kernels"] == [["", "Thing", 14, {"T": 0}, [1, 2], ""]]
    with pytest.raises(ConversionError):
        generator.main([files[0], "--release", "v0"])


def test_the_table_that_ships() -> None:
    table = load_table()
    assert table.release == "v1.24.4"
    assert sum(map(len, table.kernels.values())) == 423
    assert table.versions("", "ScatterND") == [11, 13, 16]
    for entry in table.measured:
        for since in entry["since"]:
            kernel = table.kernel(entry["domain"], entry["op"], since)
            assert kernel is not None
            assert entry["types"].keys() <= kernel.types.keys()
            assert entry["reason"]


def test_a_placement_in_words() -> None:
    placement = GraphPlacement("directml", "v1", 3, 2, 1, [], False)
    assert str(placement) == "all 3 nodes on DirectML (1 of them computed at load) by the kernels of onnxruntime v1"
