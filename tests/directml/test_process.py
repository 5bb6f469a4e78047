"""ProcessEngine on Windows: pipes, a killed child, a killed parent, two generations at once on the real DirectML."""

from __future__ import annotations

import json
from pathlib import Path

from gptoss_convert.workflow import Options, convert
from gptoss_runtime.artifact.manifest import Manifest

from .lab.lab import Lab

SCRIPT = Path(__file__).parent / "inside"


def test_the_engine_in_a_process_of_its_own(lab: Lab, nano_checkpoint: Path, tmp_path: Path) -> None:
    artifact, work = tmp_path / "gptoss-nano", tmp_path / "work"
    convert(nano_checkpoint, artifact, target="directml", options=Options(preset="best"))
    work.mkdir()
    line = (r"Z:\lab\inside\process.py", r"Z:\lab\model", "found.json")
    mounts = {"inside": SCRIPT, "model": artifact}
    done = lab.run(*line, folder=work, mounts=mounts, env={"GPTOSS_LAB_MEMORY": "/lab/w/memory"}, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((work / "found.json").read_text())
    assert found["slots"] == 2
    assert found["together"] == found["alone"]
    assert found["after_cancel"] == found["after_kill"] == found["alone"][0]
    assert "exit code" in found["killed"]
    assert found["restarts"] == 1
    assert found["load_error"] == "ArtifactError"
    assert found["closed"]
    assert found["parent_dies"]
    budget = Manifest.read(artifact).memory
    assert budget is not None
    more = found["memory_together"][1] - found["memory"][1]
    assert more <= budget.at(budget.context) - budget.weights
