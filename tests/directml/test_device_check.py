"""``gptoss doctor --check`` on the real DirectML: passes correct graphs, and detects norms computed in float16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from gptoss_convert.activation_profile import Shifts
from gptoss_convert.synthetic import amplify
from gptoss_convert.workflow import Options, convert
from gptoss_runtime.artifact.manifest import MANIFEST, FileEntry, Manifest
from gptoss_runtime.artifact.reference_logits import ReferenceLogits
from tests.parity import decoding

from .lab.lab import Lab

GRAPH = "model.onnx"
BEST = Options(preset="best")  # faster on a software GPU


def convert_amplified(checkpoint: Path, folder: Path, shift: int) -> Path:
    """Converts nano with a residual stream 2^shift times as large, which changes no answer."""
    amplify(checkpoint, folder / "checkpoint", Shifts(stream=shift))
    convert(folder / "checkpoint", folder / "directml", target="directml", options=BEST)
    return folder / "directml"


def check(lab: Lab, artifact: Path, folder: Path, *options: str) -> Any:
    line = ("-m", "gptoss_runtime.cli.main", "doctor", r"Z:\lab\model", "--check", *options)
    return lab.run(*line, folder=folder, mounts={"model": artifact}, timeout=900)


def report(lab: Lab, artifact: Path, folder: Path) -> dict[str, Any]:
    done = check(lab, artifact, folder, "--json")
    found: dict[str, Any] = json.loads(done.stdout)["check"]
    assert done.returncode == {"right": 0, "wrong": 9}[found["outcome"]], done.stderr
    return found


def with_float16_norms(artifact: Path, folder: Path) -> Path:
    """A copy whose norms of the stream are computed in float16, as in other converters."""
    shutil.copytree(artifact, folder)
    model = ir.load(folder / GRAPH)
    changed = 0
    for node in list(model.graph):
        if node.op_type != "SkipSimplifiedLayerNormalization":
            continue
        for index, value in enumerate(node.inputs):
            narrow = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT16})
            model.graph.insert_before(node, narrow)
            node.replace_input_with(index, narrow.outputs[0])
        for value in [value for value in node.outputs if value.name]:
            value.dtype = ir.DataType.FLOAT16
            wide = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
            wide.outputs[0].dtype, wide.outputs[0].shape = ir.DataType.FLOAT, value.shape
            model.graph.insert_after(node, wide)
            value.replace_all_uses_with(wide.outputs[0])
            wide.replace_input_with(0, value)
        changed += 1
    assert changed == 8
    ir.save(model, folder / GRAPH)
    manifest = Manifest.read(folder)
    files = manifest.files | {GRAPH: FileEntry.from_file(folder / GRAPH)}
    (folder / MANIFEST).write_bytes(manifest.model_copy(update={"files": files}).to_bytes())
    return folder


def test_nano_is_right(lab: Lab, nano_checkpoint: Path, tmp_path: Path, record_property: Any) -> None:
    """The default artifact, and what the user sees."""
    artifact = tmp_path / "artifact"
    convert(nano_checkpoint, artifact, target="directml")
    done = check(lab, artifact, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.strip().splitlines()[-1]
    record_property("verdict", last)
    assert last.startswith(
        "WineD3D DirectDraw Emulation computes gptoss-nano-directml correctly: 12 positions, median KL "
    )
    assert "Decoding: 8 tokens in" in done.stdout


def test_large_activations_are_right(lab: Lab, nano_checkpoint: Path, tmp_path: Path, record_property: Any) -> None:
    """The stream goes far beyond float16's range, as in gpt-oss-120b."""
    artifact = convert_amplified(nano_checkpoint, tmp_path, 10)
    reached = Manifest.read(artifact).range
    assert reached is not None
    assert reached.widest.stream > 65504
    found = report(lab, artifact, tmp_path)
    record_property("median_shift", found["median_shift"])
    assert (found["outcome"], found["repeats"], found["problems"]) == ("right", True, [])
    assert found["device"] == "WineD3D DirectDraw Emulation"
    assert found["median_shift"] < 0.1


def test_norms_in_float16_are_wrong(lab: Lab, nano_checkpoint: Path, tmp_path: Path, record_property: Any) -> None:
    """DirectML squares in float16 and saturates: all numbers are finite but wrong. On the CPU they are right."""
    artifact = with_float16_norms(convert_amplified(nano_checkpoint, tmp_path, 3), tmp_path / "narrow")
    reference = ReferenceLogits.read(artifact)
    assert reference is not None
    last = reference.positions[-1]
    [on_cpu] = decoding.logits(artifact / GRAPH, reference.token_ids, [last.position + 1], max_length=1024)
    assert last.shift(on_cpu) < 0.1
    found = report(lab, artifact, tmp_path)
    record_property("median_shift", found["median_shift"])
    assert found["outcome"] == "wrong"
    assert all(one["finite"] for one in found["positions"])
    assert found["median_shift"] > 3
    assert [problem.split(":")[0] for problem in found["problems"]] == ["prompts", "tokens fed one by one"]
    assert found["files"] == "as listed in the manifest"
