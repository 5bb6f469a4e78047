"""``gptoss doctor MODEL --check`` with nano on the CPU; tests/directml has the tests on DirectML."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from gptoss_runtime.artifact.manifest import MANIFEST, FileEntry
from gptoss_runtime.artifact.reference_logits import REFERENCE_LOGITS
from gptoss_runtime.cli.main import app
from gptoss_runtime.engine.genai import GenaiEngine
from gptoss_runtime.machine import hardware
from tests.nonfinite import damage_weights, with_infinite_norm

WEIGHTS = "model.onnx.data"


def check(model: object, *options: str) -> Any:
    return CliRunner().invoke(app, ["doctor", str(model), "--check", *options])


def report(model: object, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(check(model, "--json", *options).stdout)
    return found


def no_constant(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


@pytest.fixture
def folder(nano_artifact: Path, tmp_path: Path) -> Path:
    """A copy of nano made of hard links: tests may replace files but must not write to them."""
    folder = tmp_path / "nano"
    folder.mkdir()
    for path in nano_artifact.iterdir():
        os.link(path, folder / path.name)
    return folder


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    change(manifest)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def list_as_it_is(folder: Path, name: str = WEIGHTS) -> Path:
    """Updates the manifest, so that the check reports a wrong device instead of a damaged file."""
    entry = FileEntry.from_file(folder / name).model_dump()
    change_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))
    return folder


def scale_norm(weights: NDArray[np.uint8]) -> None:
    weights.view(np.float32)[:] *= 1.5


@pytest.fixture
def damaged(nano_artifact: Path, tmp_path: Path) -> Path:
    return damage_weights(nano_artifact, tmp_path, "model.layers.1.post_attention_layernorm.weight", scale_norm)


def test_a_correct_cpu(nano_artifact: Path) -> None:
    shown = check(nano_artifact)
    assert shown.exit_code == 0, shown.output
    last = shown.output.strip().splitlines()[-1]
    assert last.startswith("This machine's CPU computes gptoss-nano-cpu correctly: 12 positions, median KL ")
    assert "same top token at all, 960 tokens in" in last
    assert "Decoding: 8 tokens in" in shown.output
    said = report(nano_artifact)
    assert {"system", "packages", "adapters", "problems"} <= set(said)
    found = said["check"]
    assert (found["outcome"], found["repeats"], found["same_top"]) == ("right", True, 12)
    assert (found["provider"], found["target"], found["device"]) == ("cpu", "cpu", None)
    assert found["median_kl"] < 1e-6
    assert found["verdict"].startswith("This machine's CPU computes gptoss-nano-cpu correctly")


def test_a_wrong_device(damaged: Path) -> None:
    list_as_it_is(damaged)
    shown = check(damaged)
    assert shown.exit_code == 9, shown.output
    assert "This machine's CPU computes gptoss-nano-cpu WRONG: prompts: the median logit shift is" in shown.output
    block = shown.output.split("```text\n")[1].split("```")[0]
    for words in (
        "tokens fed one by one: the median logit shift is",
        "target cpu, preset balanced; files: as listed in the manifest",
        "range: the residual stream reaches",
        "olive-ai ",
        "onnxruntime-genai ",
        "Python ",
        "position  phase",
        "     511  decode",
    ):
        assert words in block
    assert str(damaged.parent) not in shown.output
    found = report(damaged)["check"]
    assert (found["outcome"], found["files"]) == ("wrong", "as listed in the manifest")
    assert found["median_kl"] > 0.01


def test_logits_that_are_not_finite(nano_artifact: Path, tmp_path: Path) -> None:
    broken = list_as_it_is(with_infinite_norm(nano_artifact, tmp_path))
    shown = check(broken)
    assert shown.exit_code == 9, shown.output
    assert "WRONG: logits are not finite at 12 of 12 positions" in shown.output
    said = check(broken, "--json")
    assert said.exit_code == 9
    found = json.loads(said.stdout, parse_constant=no_constant)["check"]
    assert (found["median_kl"], found["positions"][0]["divergence"]) == (None, None)


def test_damaged_files_are_not_reported_as_a_wrong_device(damaged: Path) -> None:
    shown = check(damaged)
    assert shown.exit_code == 4, shown.output
    assert "differs from the manifest (sha256)" in shown.output
    assert "```" not in shown.output
    shown = check(damaged, "--no-verify")
    assert shown.exit_code == 9
    assert "files: not checked" in shown.output
    said = check(damaged, "--json")
    assert said.exit_code == 4
    found = json.loads(said.stdout)["check"]
    assert (found["outcome"], found["error"]["type"]) == (None, "ArtifactError")


def test_a_device_that_is_not_deterministic(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = GenaiEngine.iter_logits, []

    def flipping(self: GenaiEngine, token_ids: Any, *, steps: int = 0) -> Any:
        calls.append(steps)
        for end, rows in plain(self, token_ids, steps=steps):
            if len(calls) == 5:
                rows.view(np.uint32)[0, 7] ^= 1
            yield end, rows

    monkeypatch.setattr(GenaiEngine, "iter_logits", flipping)
    shown = check(nano_artifact)
    assert shown.exit_code == 9
    assert "WRONG: the same prompt gave different logits the second time" in shown.output


def test_an_artifact_without_reference_logits(folder: Path) -> None:
    """An older conversion without reference logits, and one by another tool without a manifest."""
    (folder / REFERENCE_LOGITS).unlink()
    change_manifest(folder, lambda manifest: (manifest["files"].pop(REFERENCE_LOGITS), manifest.pop("range")))
    shown = check(folder)
    assert shown.exit_code == 10, shown.output
    assert "Unknown whether this machine's CPU computes gptoss-nano-cpu correctly" in shown.output
    assert "gptoss convert stores reference logits" in shown.output
    (folder / MANIFEST).unlink()
    assert check(folder).exit_code == 10
    found = report(folder)["check"]
    assert (found["outcome"], found["preset"], found["median_kl"]) == ("unknown", None, None)


def test_the_reference_logits_must_match_the_manifest(folder: Path) -> None:
    whole = (folder / REFERENCE_LOGITS).read_bytes()
    (folder / REFERENCE_LOGITS).unlink()
    (folder / REFERENCE_LOGITS).write_bytes(whole.replace(b'"position":31,', b'"position":32,'))
    shown = check(folder)
    assert shown.exit_code == 4
    assert "differs from the manifest (sha256)" in shown.output
    (folder / REFERENCE_LOGITS).unlink()
    shown = check(folder)
    assert shown.exit_code == 4
    assert "reference_logits.json is missing" in shown.output


@pytest.mark.skipif(hardware.WINDOWS, reason="there may be a GPU")
def test_errors_are_printed_as_json(nano_artifact: Path) -> None:
    said = check(nano_artifact, "--provider", "directml", "--json")
    assert said.exit_code == 6
    error = json.loads(said.stdout)["check"]["error"]
    assert error["type"] == "BackendUnavailable"
    assert error["remedy"]


def test_invalid_options(nano_artifact: Path) -> None:
    shown = check(nano_artifact, "--context-length", "512")
    assert shown.exit_code == 2
    assert "the check needs a context of 513 tokens" in shown.output
    assert check(nano_artifact, "--context-length", "513").exit_code == 0
    for arguments in (["--check"], [str(nano_artifact), "--provider", "cpu"]):
        assert CliRunner().invoke(app, ["doctor", *arguments]).exit_code == 2


def test_an_interrupt_exits_with_130(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GenaiEngine, "iter_logits", interrupted)
    monkeypatch.setattr(GenaiEngine, "close", lambda self: closed.append(self))
    shown = check(nano_artifact)
    assert shown.exit_code == 130
    assert len(closed) == 1
    assert "Traceback" not in shown.output


@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
def test_a_real_process_with_a_legacy_code_page(encoding: str, damaged: Path, tmp_path: Path) -> None:
    list_as_it_is(damaged)
    command = [sys.executable, "-W", "error", "-m", "gptoss_runtime.cli.main", "doctor", str(damaged), "--check"]
    done = subprocess.run(
        command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": encoding}, timeout=300, check=False
    )
    assert done.returncode == 9, done.stderr.decode()
    assert done.stdout.isascii()
    shutil.rmtree(tmp_path / damaged.name)
