"""The table of DirectML's kernels, compared with the real provider on a model for every row that a model can reach.

A row's model has a node for each type of each constraint, so one strict session tests them all. A version or type that
is not in the table gets a model of its own, which onnxruntime must refuse. Whole targets are compared node by node
with onnxruntime's log.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from packaging.specifiers import SpecifierSet

from gptoss_convert import targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.placement import Device, Reason, judge
from gptoss_convert.placement.table import Kernel
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import write_checkpoint
from tools.placement_table import registry

from .row_models import TABLE, allowed, choices, model, reachable

NORM = "SkipSimplifiedLayerNormalization"
NEWEST = 23  # the last opset that onnxruntime 1.24 accepts without a warning
# Errors for nodes that do not run on DirectML: the strict session refuses, or there is no kernel at all.
REFUSED = ("fallback to CPU EP has been explicitly disabled", "NOT_IMPLEMENTED", "Provider type for")
# Functions, which onnxruntime inlines if it has no kernel, and one operator that renames its constraints.
NO_NEGATIVE = ("Celu", "MeanVarianceNormalization", "QuantizeLinear")
NUMBERS = {f"tensor({kind})" for kind in ("bfloat16", "double", "uint8", "int64", "uint64", "uint4", "float8e4m3fn")}
INVALID = ("INVALID_GRAPH", "InferenceError", "INVALID_ARGUMENT")
SCRIPT = """
import json, os, subprocess, sys
import onnxruntime

def judge(names, results):
    onnxruntime.set_default_logger_severity(4)
    for name in names:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.enable_mem_pattern = 4, False
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        provider = ("DmlExecutionProvider", {"device_id": 0})
        print(json.dumps([name, "crashed"]), file=results, flush=True)
        try:
            session = onnxruntime.InferenceSession(name, options, providers=[provider])
            error = "" if "DmlExecutionProvider" in session.get_providers() else "fell back"
        except Exception as raised:
            error = str(raised)[:600]
        print(json.dumps([name, error]), file=results, flush=True)

names = json.load(open("names.json"))
if len(sys.argv) == 1:  # after a crash, the next process continues
    done = set()
    while len(done) < len(names):
        subprocess.run([sys.executable, "script.py", str(len(done))])
        done = {json.loads(line)[0] for line in open("results.jsonl")}
else:
    judge(names[int(sys.argv[1]):], open("results.jsonl", "a"))
os._exit(0)
"""
VERBOSE = """
import json, os, sys
import onnxruntime

for name in json.load(open("names.json")):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.enable_mem_pattern = 0, False
    print("\\n@@" + name, file=sys.stderr, flush=True)  # where the log goes
    onnxruntime.InferenceSession(name, options, providers=[("DmlExecutionProvider", {"device_id": 0})])
os._exit(0)
"""
REPLAY = """
import json, os, sys
import numpy, onnxruntime

options = onnxruntime.SessionOptions()
options.enable_mem_pattern = False
options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
options.add_session_config_entry("ep.dml.enable_graph_capture", sys.argv[1])
session = onnxruntime.InferenceSession("model.onnx", options, providers=[("DmlExecutionProvider", {"device_id": 0})])
make, binding = onnxruntime.OrtValue, session.io_binding()
x = make.ortvalue_from_numpy(numpy.arange(16, dtype="float32").reshape(4, 4), "dml", 0)
start, end = (make.ortvalue_from_numpy(numpy.array([n], "int64"), "cpu", 0) for n in (0, 2))
y = make.ortvalue_from_shape_and_type([2, 4], numpy.float32, "dml", 0)
for name, value in (("x", x), ("start", start), ("end", end)):
    binding.bind_ortvalue_input(name, value)
binding.bind_ortvalue_output("y", y)
rows = []
for row in range(3):
    start.update_inplace(numpy.array([row], "int64"))
    end.update_inplace(numpy.array([row + 2], "int64"))
    session.run_with_iobinding(binding)
    rows.append(int(y.numpy()[0, 0]) // 4)
print(json.dumps(rows), flush=True)
os._exit(0)
"""
# Dimensions that every preset's blocks divide.
SMALL: dict[str, Any] = {
    **{"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"sliding_window": 32, "max_position_embeddings": 1024, "eos_token_id": 1, "pad_token_id": 0},
}


def make_row_models() -> dict[str, onnx.ModelProto]:
    """Models by name: one for all types of a row that should run, one for each other type, and unregistered ones."""
    models: dict[str, onnx.ModelProto] = {}
    for versions in TABLE.kernels.values():
        for row in versions.values():
            if (opset := reachable(row)) is None:
                continue
            good = []
            for choice in choices(row, opset):
                single = model(row, opset, [choice])
                if predict(single) == "runs":
                    good.append(choice)
                else:
                    models[f"{row.op}-{row.since}-{'-'.join(kind[7:-1] for kind in choice.values())}.onnx"] = single
            if good:
                models[f"{row.op}-{row.since}.onnx"] = model(row, opset, good)
        newest = versions[max(versions)]
        if (opset := reachable(newest)) is not None:
            models.update(make_unregistered(newest, opset))
    return models


def make_unregistered(row: Kernel, opset: int) -> dict[str, onnx.ModelProto]:
    """Models of the operator in the first version after its newest kernel, and with a type that its kernel lacks."""
    models = {}
    own = allowed(row, opset)
    if not own or row.op in NO_NEGATIVE:
        return models
    usual = choices(row, opset)[0]
    for later in range(opset + 1, NEWEST + 1):
        if onnx.defs.get_schema(row.op, later, row.domain).since_version != row.since:
            models[f"{row.op}-opset{later}.onnx"] = model(row, later, [usual])
            break
    for name, kinds in row.types.items():
        lacking = sorted(kind for kind in own.get(name, []) if kind in NUMBERS and kind not in kinds)
        for kind in lacking[:1]:
            models[f"{row.op}-{row.since}-not-{name}-{kind[7:-1]}.onnx"] = model(row, opset, [{**usual, name: kind}])
    return models


def designs() -> dict[str, onnx.ModelProto]:
    """Cases beyond the rows: shape arithmetic, control flow, inputs on the CPU, arguments that kernels refuse."""
    node, scalar = helper.make_node, helper.make_tensor("zero", onnx.TensorProto.INT64, [], [0])
    weights = [helper.make_tensor("w", onnx.TensorProto.UINT8, [8, 1, 16], [0] * 128)]
    weights += [helper.make_tensor(name, onnx.TensorProto.FLOAT, [8], [1.0] * 8) for name in ("s", "b")]
    gain = [helper.make_tensor("g", onnx.TensorProto.FLOAT, [4], [1.0] * 4)]
    norm = {"domain": "com.microsoft", "epsilon": 1e-5}
    blocks = {"domain": "com.microsoft", "K": 32, "N": 8, "block_size": 32}
    branches = [helper.make_graph([node(op, ["x", "x"], [op])], op, [], [value(op, ["n", 4])]) for op in ("Add", "Mul")]
    choice = node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    x, shape = value("x", ["n", 4]), node("Shape", ["x"], ["shape"])
    integers = value("i", [2], onnx.TensorProto.INT64)
    flag = value("c", [], onnx.TensorProto.BOOL)
    wide = value("x", [1, 1, 32])
    return {
        "shape.onnx": make_model([shape], [x]),
        "shape-arithmetic.onnx": make_model([shape, node("Gather", ["shape", "zero"], ["y"])], [x], [scalar]),
        "shape-back.onnx": make_model([shape, node("Reshape", ["x", "shape"], ["y"])], [x]),
        "shape-known.onnx": make_model([shape, node("Add", ["shape", "i"], ["y"])], [value("x", [2, 4]), integers]),
        "reshape-to-input.onnx": make_model([node("Reshape", ["x", "i"], ["y"])], [x, integers]),
        "if-19.onnx": make_model([choice], [x, flag], opset=19),
        "if-21.onnx": make_model([choice], [x, flag]),
        "norm.onnx": make_model(
            [node(NORM, ["x", "x", "g"], ["y", "", "", "t"], **norm)], [value("x", [1, 2, 4])], gain
        ),
        "norm-named.onnx": make_model([node(NORM, ["x", "x", "g"], ["y", "m"], **norm)], [value("x", [1, 2, 4])], gain),
        "moe.onnx": make_model(
            [node("MoE", ["x", "x", "x3", "", "x3"], ["y"], domain="com.microsoft", k=1)], [x, value("x3", [4, 4, 4])]
        ),
        "bits-2.onnx": make_model([node("MatMulNBits", ["x", "w", "s"], ["y"], bits=2, **blocks)], [wide], weights),
        "bias.onnx": make_model(
            [node("MatMulNBits", ["x", "w", "s", "", "", "b"], ["y"], bits=4, **blocks)], [wide], weights
        ),
        "scatter-add.onnx": make_model(
            [node("ScatterElements", ["x", "j", "x"], ["y"], reduction="add")],
            [value("x", [2, 4]), value("j", [2, 4], onnx.TensorProto.INT64)],
            opset=16,
        ),
    }


def value(name: str, shape: list[Any], kind: int = onnx.TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def make_model(
    nodes: list[Any], given: list[Any], constants: list[Any] | None = None, opset: int = 21
) -> onnx.ModelProto:
    outputs = [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    graph = helper.make_graph(nodes, "design", given, outputs, constants or [])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def predict(proto: onnx.ModelProto) -> str:
    """The prediction: "runs", "refused" or "breaks"."""
    verdicts = judge(ir.from_proto(proto))
    if any(verdict.device is Device.CPU for verdict in verdicts):
        return "refused"
    return "breaks" if any(verdict.reason is Reason.BROKEN for verdict in verdicts) else "runs"


def classify_error(error: str) -> str:
    """The provider's outcome; "invalid" means that the model is wrong, not the table."""
    if not error:
        return "runs"
    if any(words in error for words in REFUSED):
        return "refused"
    return "invalid" if any(words in error for words in INVALID) else "breaks"


def test_the_table_agrees_with_directml(lab: Any, tmp_path: Path) -> None:
    models = make_row_models() | designs()
    expected = {name: predict(proto) for name, proto in models.items()}
    for name, proto in models.items():
        onnx.save(proto, tmp_path / name)
    (tmp_path / "names.json").write_text(json.dumps(list(models)))
    (tmp_path / "script.py").write_text(SCRIPT)
    lab.run("script.py", folder=tmp_path, timeout=300)
    results = dict(json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines())
    assert results.keys() == models.keys()
    found = {name: classify_error(error) for name, error in results.items()}
    assert {name: (expected[name], results[name]) for name in found if found[name] != expected[name]} == {}
    counted = Counter(found.values())
    assert counted["runs"] > 370, counted
    assert counted["refused"] > 150, counted


def test_the_table_agrees_with_the_release(lab: Any, tmp_path: Path) -> None:
    shutil.copy(registry.__file__, tmp_path / "registry.py")
    done = lab.run("registry.py", "registry.json", folder=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    dump = json.loads((tmp_path / "registry.json").read_text())
    assert f"v{dump['release']}" == TABLE.release
    live = {(k["domain"], k["op"], k["since"]): {c: set(t) for c, t in k["types"].items()} for k in dump["kernels"]}
    shipped = {
        (row.domain, row.op, row.since): {name: set(kinds) for name, kinds in row.types.items()}
        for versions in TABLE.kernels.values()
        for row in versions.values()
    }
    assert live == shipped
    assert not [k for k in dump["kernels"] if k["until"] is not None]  # what Table.kernel relies on


def test_every_target_is_placed_as_predicted(lab: Any, tmp_path: Path) -> None:
    expected: dict[str, Counter[str]] = {}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", SMALL))
    for target in map(targets.load, targets.names()):
        needed = (target.requires.get(name, "") for name in ("onnxruntime", "onnxruntime-gpu"))
        if not all(SpecifierSet(versions).contains(TABLE.release) for versions in needed):
            continue  # its operators are newer than the lab's onnxruntime
        for preset in target.presets:
            (folder := tmp_path / f"{target.name}-{preset}").mkdir()
            made = export(checkpoint, target, resolve(target.presets, preset, {}), folder).model
            verdicts = judge(ir.load(made))
            off = (verdict.operator.split("::")[1] for verdict in verdicts if verdict.device is Device.CPU)
            expected[f"{folder.name}/{made.name}"] = Counter(off)
    assert expected
    (tmp_path / "names.json").write_text(json.dumps(list(expected)))
    (tmp_path / "script.py").write_text(VERBOSE)
    done = lab.run("script.py", folder=tmp_path, timeout=120)
    parts = dict(part.split("\n", 1) for part in done.stderr.split("\n@@")[1:])
    assert {name: placed_on_cpu(parts[name]) for name in expected} == expected


def placed_on_cpu(log: str) -> Counter[str]:
    """Nodes by operator that a session's log says are on the CPU."""
    found: Counter[str] = Counter()
    provider = ""
    for line in re.findall(r"VerifyEachNodeIsAssignedToAnEp\S*\s+(.*)", log):
        if placed := re.search(r"placed on \[(\w+)\]", line):
            provider = placed[1]
        elif provider == "CPUExecutionProvider" and (node := re.match(r"(\w+) \(", line)):
            found[node[1]] += 1
    assert provider, log[-2000:]
    return found


@pytest.mark.parametrize("captured", [False, True])
def test_a_captured_graph_keeps_inputs_read_on_the_cpu(lab: Any, tmp_path: Path, captured: bool) -> None:
    integer, rows = onnx.TensorProto.INT64, ["start", "end", "axis"]
    axis = [helper.make_tensor("axis", integer, [1], [0])]
    given = [value("x", [4, 4]), value("start", [1], integer), value("end", [1], integer)]
    proto = make_model([helper.make_node("Slice", ["x", *rows], ["y"])], given, axis)
    assert judge(ir.from_proto(proto))[0].reason is Reason.HOST_INPUT
    onnx.save(proto, tmp_path / "model.onnx")
    (tmp_path / "script.py").write_text(REPLAY)
    done = lab.run("script.py", str(int(captured)), folder=tmp_path, timeout=60)
    assert json.loads(done.stdout.splitlines()[-1]) == ([0, 0, 0] if captured else [0, 1, 2]), done.stderr
