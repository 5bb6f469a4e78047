"""Measures graphs of a scaled-down gpt-oss in the lab."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptoss_convert.artifact import memory_budget
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.schemes import resolve
from gptoss_convert.targets import Target
from gptoss_runtime.artifact.manifest import MemoryBudget

from .lab.lab import Lab

SCRIPTS = Path(__file__).parent / "inside"
# The 20b's number of experts; width and vocabulary are scaled down together.
SCALED_DOWN: Mapping[str, Any] = {
    **{"hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 32768},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 2048},
    **{"eos_token_id": 1, "pad_token_id": 0},
}


def graph(checkpoint: Path, target: Target, folder: Path) -> MemoryBudget:
    """Writes model.onnx in the smallest preset; returns its memory budget."""
    opened = Checkpoint.open(checkpoint)
    folder.mkdir()
    written = export(opened, target, resolve(target.presets, "smallest"), folder)
    return memory_budget(opened.config, target, written.weights.nbytes)


def measure(lab: Lab, folder: Path, lengths: Sequence[int], max_length: int) -> dict[str, Any]:
    """Runs inside/measure.py on the graph in a folder; returns its figures."""
    line = (r"Z:\lab\scripts\measure.py", "model.onnx", json.dumps(list(lengths)), str(max_length), "measured.json")
    env = {"GPTOSS_LAB_MEMORY": "/lab/w/memory"}
    done = lab.run(*line, folder=folder, mounts={"scripts": SCRIPTS}, env=env, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    measured: dict[str, Any] = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    return measured
