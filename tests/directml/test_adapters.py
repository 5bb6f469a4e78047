"""The runtime's Windows code on Windows' Python: DXGI through ctypes, typed errors, and gptoss doctor."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .lab.lab import Lab

NAME = "WineD3D DirectDraw Emulation"
LIST = """
import json
from dataclasses import asdict
from gptoss_runtime.machine import adapters, dxgi
for _ in range(20):  # reference counting errors would show
    found = adapters.list_adapters()
print(json.dumps([[asdict(one) for one in found], asdict(adapters.choose_adapter(found, "wined3d"))]))
"""
CHOOSE = """
from gptoss_runtime import GptOssError
from gptoss_runtime.machine import adapters
try:
    print(adapters.choose_adapter(adapters.list_adapters(), {wanted!r}).index)
except GptOssError as error:
    print(type(error).__name__, error.exit_code, error, sep="\\n")
"""


def doctor(lab: Lab, folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done = lab.run("-m", "gptoss_runtime.cli.main", "doctor", *arguments, folder=folder, timeout=120, **options)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_adapter_as_dxgi_reports_it(lab: Lab, tmp_path: Path) -> None:
    done = lab.run("-c", LIST, folder=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    (one,), chosen = json.loads(done.stdout)
    assert chosen == one
    high, low = map(int, one.pop("luid").split(":"))
    assert (high, low) != (0, 0)
    assert one.pop("budget") > one.pop("usage") > 0
    assert one.pop("shared_memory") > 1 << 30
    assert one == {
        "index": 0,
        "name": NAME,
        "vendor": "0000",
        "dedicated_memory": 8 << 30,
        "software": False,
        "driver": "10.0.0.0",
        "feature_level": "12_2",
    }


@pytest.mark.parametrize(
    ("fault", "wanted", "error"),
    [
        ("nodevice", None, "DriverTooOld"),
        ("nodevice", "WineD3D", "DriverTooOld"),
        ("feature-level:a100", 0, "DriverTooOld"),
        ("feature-level:b000", 0, "0"),
        ("removed:1000", 1, "NoAdapter"),
    ],
)
def test_adapters_that_cannot_be_used(
    lab: Lab, tmp_path: Path, fault: str, wanted: int | str | None, error: str
) -> None:
    env = {"GPTOSS_LAB_FAULT": fault}
    done = lab.run("-c", CHOOSE.format(wanted=wanted), folder=tmp_path, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == error
    if error != "0":
        assert said[1] == "6"
        assert NAME in "".join(said[2:])


def test_doctor(lab: Lab, tmp_path: Path) -> None:
    done = doctor(lab, tmp_path, env={"PYTHONUTF8": "0", "PYTHONIOENCODING": "cp437"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    for words in ("Windows 10 (10.0.", "0 (chosen)", NAME, "8.6 GB", "12_2", "onnxruntime-directml 1.24.4"):
        assert words in done.stdout
    reason = "it is the only adapter that DirectML can use"
    last = f"gptoss would use directml on adapter 0, {NAME}: {reason}: --provider directml"
    assert done.stdout.splitlines()[-1] == last


def test_doctor_with_an_artifact(lab: Lab, nano_artifact: Path, tmp_path: Path) -> None:
    """nano for the CPU: its MXFP4 experts need a newer onnxruntime than DirectML's."""
    done = doctor(lab, tmp_path, r"Z:\lab\model", "--json", mounts={"model": nano_artifact})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["runs_on"] == ["directml", "cpu"]
    assert report["gptoss"] is None  # not installed there, only on the path
    assert report["problems"] == []
    assert report["artifact"]["unmet"][0] == "onnxruntime>=1.32 (1.24.4 is installed)"
    assert [(fit["adapter"], fit["contexts"]["131072"]) for fit in report["fits"]] == [(NAME, True), ("CPU", True)]


@pytest.mark.parametrize(
    ("fault", "level"), [("nodevice", None), ("feature-level:a100", None), ("feature-level:c000", "12_0")]
)
def test_doctor_on_a_gpu_with_a_fault(lab: Lab, tmp_path: Path, fault: str, level: str | None) -> None:
    env = {"GPTOSS_LAB_FAULT": fault}
    done = doctor(lab, tmp_path, "--json", env=env)
    assert done.returncode == 0, done.stderr  # the CPU is left
    report = json.loads(done.stdout)
    assert report["adapters"][0]["feature_level"] == level
    assert report["runs_on"] == (["cpu"] if level is None else ["directml", "cpu"])
    if level is None:
        (problem,) = report["problems"]
        assert problem["for"] == "directml"
        assert "feature level 11_0" in problem["problem"]
        assert "driver" in problem["remedy"]
        shown = doctor(lab, tmp_path, env=env)
        assert problem["problem"] in shown.stdout
        assert shown.stdout.splitlines()[-1].startswith("gptoss would use cpu because")


def test_doctor_where_nothing_runs(lab: Lab, tmp_path: Path) -> None:
    """A CPU build installed over DirectML's; only its metadata is read, so metadata is enough."""
    for name in ("onnxruntime", "onnxruntime_genai"):
        metadata = tmp_path / f"{name}-1.32.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.32.0\n")
    done = doctor(lab, tmp_path, env={"PYTHONPATH": r"Z:\lab\runtime;Z:\lab\w"})
    assert done.returncode == 6, done.stdout + done.stderr
    names = "onnxruntime onnxruntime-directml onnxruntime-genai onnxruntime-genai-directml"
    assert f"  pip uninstall -y {names}\n" in done.stdout
    assert "gptoss cannot run here" in done.stdout


def test_a_missing_artifact_ends_with_its_own_code(lab: Lab, tmp_path: Path) -> None:
    done = doctor(lab, tmp_path, r".\nothing")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "nothing" in done.stderr
    named = doctor(lab, tmp_path, "nothing")
    assert named.returncode == 2
    assert "there is no model 'nothing'" in named.stderr
