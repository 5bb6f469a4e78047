"""``gptoss doctor`` on made-up machines; tests/directml has the tests on the lab's DirectML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gptoss_runtime.cli.main import app
from gptoss_runtime.errors import DeviceError
from gptoss_runtime.machine import adapters, hardware, installed
from gptoss_runtime.machine.adapters import Adapter

GB = 1 << 30
CARD = Adapter(0, "A [red]Card[/] (TM)", "NVIDIA", "0:1", 16 * GB, 32 * GB, False, "1.2.3.4", "12_2", 15 * GB, 0)
CHIP = replace(CARD, index=1, name="A Chip", luid="0:-7", dedicated_memory=GB // 8, budget=None)
BASIC = replace(CARD, index=-1, name="Basic Render Driver", luid="0:3", software=True, budget=None)
BUILDS = {"onnxruntime-directml": "1.24.4", "onnxruntime-genai-directml": "0.13.1"}


def doctor(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def report(*arguments: object) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(doctor(*arguments, "--json").output)
    return result


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def machine(*found: Adapter, builds: dict[str, str] = BUILDS) -> None:
        monkeypatch.setattr(hardware, "WINDOWS", True)
        monkeypatch.setattr(adapters, "list_adapters", lambda: list(found))
        monkeypatch.setattr(installed, "find_builds", lambda: builds)

    return machine


def test_this_machine() -> None:
    shown = doctor()
    assert shown.exit_code == 0, shown.output
    if not hardware.WINDOWS:
        assert "DirectML needs Windows" in shown.output
        assert "gptoss would use cpu" in shown.output
        assert len(report()["problems"]) == 1


def test_a_machine_with_two_adapters(machine: Any) -> None:
    machine(BASIC, CARD, CHIP)
    said = report()
    assert (said["runs_on"], said["chosen_adapter"], said["problems"]) == (["directml", "cpu"], 0, [])
    assert [one["luid"] for one in said["adapters"]] == ["0:3", "0:1", "0:-7"]
    shown = doctor()
    assert shown.exit_code == 0
    assert shown.output.isascii()
    for words in ("0 (chosen)", "A [red]Card[/] (TM)", "software", "17.2 GB", "1.2.3.4", "12_2", "0:-7"):
        assert words in shown.output
    assert "on adapter 0, A [red]Card[/] (TM): it has the most dedicated memory" in shown.output


def test_context_lengths_that_fit(machine: Any, nano_artifact: Path) -> None:
    machine(CARD, replace(CHIP, shared_memory=GB // 4))
    said = report(nano_artifact)
    assert said["artifact"]["unmet"] == [
        "onnxruntime>=1.32 (1.24.4 is installed)",
        "onnxruntime-genai>=0.18 (0.13.1 is installed)",
    ]
    card, chip, cpu = said["fits"]
    assert card["contexts"] == {"8192": True, "32768": True, "131072": True}
    assert chip["largest_context"] == 0
    assert not any(chip["contexts"].values())
    assert cpu["adapter"] == "CPU"
    shown = doctor(nano_artifact).output
    for words in ("8,192", "131,072", "too long", "it requires onnxruntime>=1.32 (1.24.4 is installed)"):
        assert words in shown


def test_every_problem_has_a_remedy(machine: Any) -> None:
    machine(replace(CARD, feature_level=None, driver=None), builds=BUILDS | {"onnxruntime": "1.32.0"})
    shown = doctor()
    assert shown.exit_code == 6
    assert "gptoss cannot run here" in shown.output
    said = report()
    assert said["runs_on"] == []
    assert [(one["for"], one["problem"].split(":")[0].split(" are")[0]) for one in said["problems"]] == [
        ("directml", "A [red]Card[/] (TM)"),
        ("directml", "onnxruntime and onnxruntime-directml"),
        ("cpu", "onnxruntime and onnxruntime-directml"),
    ]
    for one in said["problems"]:
        assert one["remedy"]
        assert one["problem"] in shown.output
        for line in one["remedy"].splitlines():
            assert line in shown.output


def test_nothing_installed(machine: Any) -> None:
    machine(CARD, builds={})
    shown = doctor()
    assert shown.exit_code == 6
    assert 'pip install "gptoss-windows[cpu]"' in shown.output
    assert report()["chosen_adapter"] == 0


def test_a_failing_dxgi(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> list[Adapter]:
        raise DeviceError("listing graphics adapters: 80004005", remedy="Reinstall the graphics driver.")

    machine()
    monkeypatch.setattr(adapters, "list_adapters", fails)
    said = report()
    assert said["runs_on"] == ["cpu"]
    assert "80004005" in said["problems"][0]["problem"]


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    shown = doctor(tmp_path)
    assert shown.exit_code == 4
    assert "manifest.json cannot be read" in shown.output


@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
def test_a_real_process_with_a_legacy_code_page(encoding: str, nano_artifact: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "gptoss_runtime.cli.main", "doctor", str(nano_artifact)]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert "131,072" in done.stdout.decode(encoding)
    assert done.stdout.isascii()
