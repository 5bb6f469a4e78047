"""Graphs, run by onnxruntime alone, compared with transformers and with Optimum's export."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from gptoss_convert import targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.graph.pieces import Limit
from gptoss_convert.parity.metrics import compare
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.schemes import resolve
from gptoss_convert.targets import directml
from tools.transformers_reference import load_transformers, transformers_logits

from .decoding import logits

LENGTH = 300  # several windows; transformers is the slow part
FLOAT32 = {"experts": "float32"}
DENSE32 = {"embedding": "float32", "attention": "float32", "lm_head": "float32"}
LIMIT = 1 << 16  # for a dequantised weight; small enough that even these models are split into pieces


def graph(checkpoint: Path, out: Path, target: str = "cpu", preset: str = "lossless", **schemes: Any) -> Path:
    chosen = targets.load(target)
    out.mkdir()
    quantisation = resolve(chosen.presets, preset, schemes)
    return export(Checkpoint.open(checkpoint), chosen, quantisation, out, logits="all").model


def directml_graph(
    checkpoint: Path, out: Path, design: str, dtype: ir.DataType, limit: int = LIMIT, **schemes: Any
) -> Path:
    """A graph of one of DirectML's designs, which onnxruntime also runs on the CPU."""
    target = directml.target(design, dtype, Limit(limit))
    out.mkdir()
    quantisation = resolve(target.presets, "best", schemes)
    return export(Checkpoint.open(checkpoint), target, quantisation, out, logits="all").model


def pieces(length: int) -> dict[str, list[int]]:
    rng = random.Random(0)
    some = [40]
    while sum(some) < length:
        some.append(min(rng.choice((1, 1, 2, 7, 31, 64)), length - sum(some)))
    return {"prefill": [length], "step by step": [1] * length, "in pieces": some}


@pytest.mark.parametrize("schemes", [{}, FLOAT32], ids=["mxfp4", "float32"])
def test_exact_graphs_agree_with_transformers(variant: Path, schemes: dict[str, str], tmp_path: Path) -> None:
    ids = generate_sequences(512, count=1, length=LENGTH)[0]
    expected = transformers_logits(load_transformers(variant), ids)
    model = graph(variant, tmp_path / "graph", **schemes)
    for path, sizes in pieces(LENGTH).items():
        apart = compare(expected, logits(model, ids, sizes))
        assert apart.max_abs.max() < 1e-3, path
        assert apart.same_top.mean() > 0.99, path  # random weights leave near ties


@pytest.mark.parametrize("design", ["split", "dense"])
def test_directmls_graphs_agree_with_transformers(variant: Path, design: str, tmp_path: Path) -> None:
    """int8 represents MXFP4 exactly. tests/directml runs the graphs on DirectML itself."""
    ids = generate_sequences(512, count=1, length=LENGTH)[0]
    expected = transformers_logits(load_transformers(variant), ids)
    model = directml_graph(variant, tmp_path / "graph", design, ir.DataType.FLOAT, **DENSE32)
    for path, sizes in pieces(LENGTH).items():
        apart = compare(expected, logits(model, ids, sizes, max_length=LENGTH + 1))
        assert apart.max_abs.max() < 1e-3, path
        assert apart.same_top.mean() > 0.99, path


def test_directmls_slots_decode_like_the_other_designs(variant: Path, tmp_path: Path) -> None:
    ids = generate_sequences(512, count=1, length=80)[0]
    rows = [
        logits(
            directml_graph(variant, tmp_path / design, design, ir.DataType.FLOAT, **DENSE32),
            ids,
            [1] * 80,
            max_length=96,
        )
        for design in directml.DESIGNS
    ]
    for other in rows[1:]:
        assert compare(rows[0], other).max_abs.max() < 1e-3


@pytest.mark.integration
@pytest.mark.parametrize("schemes", [{}, FLOAT32], ids=["mxfp4", "float32"])
def test_exact_graphs_of_nano_agree_with_transformers(
    nano_checkpoint: Path, schemes: dict[str, str], tmp_path: Path
) -> None:
    """nano was not trained on concatenated conversations; float32 noise there is 2e-3 in transformers itself."""
    ids = generate_sequences(201_088, count=1, length=400)[0]
    expected = transformers_logits(load_transformers(nano_checkpoint), ids)
    model = graph(nano_checkpoint, tmp_path / "graph", **schemes)
    for sizes in ([400], [100, *[1] * 300]):
        apart = compare(expected, logits(model, ids, sizes))
        assert np.quantile(apart.max_abs, 0.95) < 1e-3
        assert apart.max_abs.max() < 1e-4 * np.ptp(expected)
        assert apart.same_top.all()


@pytest.mark.parametrize(
    ("target", "preset", "most_kl"),
    [("cpu", "balanced", 0.03), ("cpu", "smallest", 0.2), ("cpu-int4", "balanced", 0.2), ("cpu-int4", "smallest", 0.3)],
)
def test_quantised_graphs_stay_near(
    target: str, preset: str, most_kl: float, float_checkpoint: Path, tmp_path: Path, record_property: Any
) -> None:
    """Bounds for random weights, which have no redundancy; docs/conversion.md has nano's figures."""
    ids = generate_sequences(512, count=1, length=LENGTH)[0]
    expected = transformers_logits(load_transformers(float_checkpoint), ids)
    model = graph(float_checkpoint, tmp_path / "graph", target, preset)
    apart = compare(expected, logits(model, ids, [LENGTH]))
    record_property("mean_kl", float(apart.kl.mean()))
    record_property("top1", float(apart.same_top.mean()))
    assert apart.kl.mean() < most_kl


def test_optimums_export_gives_the_same_logits(float_checkpoint: Path, optimum_packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "optimum"
    script = Path(__file__).with_name("optimum_oracle.py")
    command = [sys.executable, str(script), str(optimum_packages), str(float_checkpoint), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    ids = generate_sequences(512, count=1, length=LENGTH)[0]
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, LENGTH), np.int64)}
    feeds["position_ids"] = np.arange(LENGTH)[None]
    wanted = {node.name for node in session.get_inputs()}
    (theirs,) = session.run(["logits"], {name: value for name, value in feeds.items() if name in wanted})
    ours = logits(graph(float_checkpoint, tmp_path / "graph", **FLOAT32), ids, [LENGTH])
    apart = compare(theirs[0], ours)
    assert apart.max_abs.max() < 1e-3
