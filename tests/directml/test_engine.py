"""The runtime on the real DirectML: genai with graph capture, long answers, and GPU failures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.nano.skills import held_out
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import amplify
from gptoss_convert.targets import directml
from gptoss_convert.workflow import Options, convert
from gptoss_runtime.artifact.manifest import Manifest
from tests.parity import decoding
from tests.parity.conftest import SHIFTS

from .lab.lab import Lab

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "inside"
SAMPLE, OTHER = held_out("arithmetic", 1)[0], held_out("two_step", 1)[0]


PROMPT = SAMPLE.prompt_ids


@pytest.fixture(scope="module")
def nano(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano for DirectML in the preset with float weights, which is faster on a software GPU."""
    out = tmp_path_factory.mktemp("directml") / "gptoss-nano"
    convert(nano_checkpoint, out, target="directml", options=Options(preset="best"))
    return out


def ask(lab: Lab, artifact: Path, folder: Path, asked: list[dict[str, Any]], **env: str) -> list[dict[str, Any]]:
    (folder / "asked.json").write_text(json.dumps(asked))
    line = (r"Z:\lab\inside\engine.py", r"Z:\lab\model", "asked.json", "answers.json")
    mounts = {"inside": SCRIPT, "model": artifact}
    done = lab.run(*line, folder=folder, mounts=mounts, env={"GPTOSS_LAB_MEMORY": "/lab/w/memory", **env}, timeout=900)
    assert env or done.returncode == 0, done.stdout + done.stderr
    assert (folder / "answers.json").exists(), done.stdout + done.stderr
    answers: list[dict[str, Any]] = json.loads((folder / "answers.json").read_text())
    return answers


def test_200_tokens_and_an_answer_after_another(
    lab: Lab, nano: Path, nano_checkpoint: Path, tmp_path: Path, record_property: Any
) -> None:
    """Token by token under graph capture, compared with the CPU.

    A token may differ only where rounding to float16 changes the CPU's logits by a similar amount. That happens after
    the end of nano's answer, where the text is unlike its training data.
    """
    follow_up = PROMPT + SAMPLE.answer_ids + OTHER.prompt_ids  # longer than a piece of a prompt, and several windows
    asked = [{"prompt": PROMPT, "new_tokens": 200}, {"prompt": follow_up, "new_tokens": 12}]
    info, *answers = ask(lab, nano, tmp_path, asked)
    checkpoint = Checkpoint.open(nano_checkpoint)
    graphs = []
    for dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        target, folder = directml.target(dtype=dtype), tmp_path / dtype.name
        folder.mkdir()
        graphs.append(export(checkpoint, target, resolve(target.presets, "best"), folder, logits="all").model)
    for one, answer in zip(asked, answers, strict=True):
        tokens, prompt = answer["tokens"], one["prompt"]
        assert len(tokens) == one["new_tokens"]
        ids = [*prompt, *tokens]
        exact, rounded = (
            decoding.logits(graph, ids, [len(ids)], max_length=512)[len(prompt) - 1 : -1] for graph in graphs
        )
        lost = exact.max(-1) - exact[np.arange(len(tokens)), tokens]
        record_property("equal", float((lost == 0).mean()))
        assert (lost == 0).mean() >= 0.99
        assert lost.max() <= 3 * np.abs(rounded - exact).max()  # DirectML rounds more often, in the lab towards zero
    assert answers[0]["tokens"][: len(SAMPLE.answer_ids)] == SAMPLE.answer_ids
    budget = Manifest.read(nano).memory
    assert info["context_length"] == 4096
    assert info["memory"][0] == pytest.approx(budget.weights, rel=0.05)  # once, and nothing else
    assert answers[-1]["memory"][1] <= budget.at(info["context_length"])


@pytest.mark.parametrize(
    ("fault", "error", "remedy"),
    [
        ("nodevice", "DriverTooOld", "driver"),
        ("feature-level:a000", "DriverTooOld", "driver"),
        ("memory:32", "ResourceError", "context_length"),
        ("removed:20", "DeviceLost", "new process"),
        ("removed:120", "DeviceLost", "new process"),
    ],
)
def test_a_failing_gpu_is_a_typed_error(
    lab: Lab, nano: Path, tmp_path: Path, fault: str, error: str, remedy: str
) -> None:
    asked = [{"prompt": PROMPT, "new_tokens": 8}]
    last = ask(lab, nano, tmp_path, asked, GPTOSS_LAB_FAULT=fault)[-1]
    assert last.get("error") == error, last
    assert remedy in last["remedy"]


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(lab: Lab, nano: Path, tmp_path: Path) -> None:
    """The manifest is changed to need the 20b's memory; the lab's adapter has 8 GB."""
    artifact = tmp_path / "large"
    shutil.copytree(nano, artifact)
    manifest = json.loads((artifact / "manifest.json").read_text())
    memory = {"weights": 12_660_000_000, "kv_per_token": 49152, "context": 8192, "peak": 13_800_000_000}
    (artifact / "manifest.json").write_text(json.dumps(manifest | {"memory": memory}))
    last = ask(lab, artifact, tmp_path, [])[-1]
    assert last["error"] == "ResourceError"
    assert "smallest" in last["remedy"]


def test_doctor(lab: Lab, nano: Path, tmp_path: Path) -> None:
    line = ("-m", "gptoss_runtime.cli.main", "doctor", r"Z:\lab\model", "--json")
    report = json.loads(lab.run(*line, folder=tmp_path, mounts={"model": nano}).stdout)
    assert report["runs_on"][0] == "directml"
    assert report["adapters"][report["chosen_adapter"]]["dedicated_memory"] == 8 << 30
    assert report["fits"][0]["contexts"]["8192"]
    broken = lab.run(*line, folder=tmp_path, mounts={"model": nano}, env={"GPTOSS_LAB_FAULT": "nodevice"})
    report = json.loads(broken.stdout)
    assert report["runs_on"] == ["cpu"]  # genai's DirectML build computes on the CPU as well
    assert "driver" in report["problems"][0]["remedy"]
    shown = lab.run(*line[:-1], folder=tmp_path, mounts={"model": nano}, env={"PYTHONIOENCODING": "cp437"})
    assert shown.returncode == 0, shown.stderr
    assert "--provider directml" in shown.stdout


@pytest.mark.parametrize("activations", ["as trained", "all at once"])
def test_a_conversation_at_the_terminal(
    activations: str, lab: Lab, nano: Path, nano_checkpoint: Path, tmp_path: Path
) -> None:
    """The transcript in docs/directml-chat.md, word for word; large activations do not change it."""
    if activations != "as trained":
        checkpoint = amplify(nano_checkpoint, tmp_path / "checkpoint", SHIFTS[activations])
        nano = tmp_path / "gptoss-nano"
        convert(checkpoint, nano, target="directml", options=Options(preset="best"))
    page = (ROOT / "docs" / "directml-chat.md").read_text(encoding="utf-8")
    said, expected = (block.split("```")[0] for block in page.split("```text\n")[1:])
    line = ("-m", "gptoss_runtime.cli.main", "chat", r"Z:\lab\model", "--temperature", "0", "--no-date")
    done = lab.run(*line, folder=tmp_path, mounts={"model": nano}, stdin=said, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected.strip()
