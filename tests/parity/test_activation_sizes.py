"""Activations that are small, large or beyond float16, which show errors that ordinary sizes hide.

Float32 graphs agree with transformers to float32's precision, so constants are checked to their last digits. The CPU
rounds to float16 between nodes; tests/directml covers what DirectML rounds inside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_convert.activation_profile import Array, Profile, Shifts
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import amplify, write_checkpoint
from gptoss_convert.targets import Target, cuda, directml
from tests.tiers import mostly_integration
from tools.transformers_reference import load_transformers, transformers_logits

from .checkpoints import Changed, relative, relative_by_token
from .conftest import SMALL
from .decoding import logits
from .test_graphs import DENSE32, directml_graph, graph

LENGTH, PIECES = 120, [100, *[1] * 20]
SHARP = Profile(query_gain=4.0)  # queries are larger than keys
FLOAT32, FLOAT16 = 1e-5, 1e-2  # largest relative difference, by float type
DIMENSIONS = SMALL | {"intermediate_size": 128}


def ids() -> list[int]:
    return generate_sequences(SMALL["vocab_size"], count=1, length=LENGTH)[0]


def expected(checkpoint: Path) -> NDArray[np.float32]:
    return transformers_logits(load_transformers(checkpoint), ids())


def directml_logits(model: Path) -> NDArray[np.float32]:
    return logits(model, ids(), PIECES, max_length=LENGTH + 1)


def on_cpu(target: Target, checkpoint: Path, out: Path, preset: str, **schemes: Any) -> NDArray[np.float32]:
    """Logits of a target's graph, composed of the pieces that run on the CPU."""
    out.mkdir()
    if not target.runs_on_cpu:
        assert target.on_cpu is not None
        target = replace(target, compose=target.on_cpu)
    quantisation = resolve(target.presets, preset, schemes)
    model = export(Checkpoint.open(checkpoint), target, quantisation, out, logits="all").model
    return directml_logits(model) if target.name == "directml" else logits(model, ids(), PIECES)


@pytest.mark.parametrize("eps", [None, 4e-6], ids=["by default", "given"])
def test_a_small_stream_where_eps_matters(eps: float | None, tmp_path: Path) -> None:
    source = amplify(write_checkpoint(tmp_path / "source", SMALL, seed=3), tmp_path / "small", Shifts(stream=-9))
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["rms_norm_eps"] = eps
    kept = {name: value for name, value in config.items() if value is not None}
    (source / "config.json").write_text(json.dumps(kept), "utf-8")
    assert relative(expected(source), logits(graph(source, tmp_path / "graph"), ids(), PIECES)) < FLOAT32


def louder(values: Array) -> Array:
    """Multiplies by 8; adds 3 to MXFP4's scale bytes."""
    return values + np.uint8(3) if values.dtype == np.uint8 else values * np.float32(8)


@pytest.mark.parametrize("limit", [None, 5.0], ids=["by default", "given"])
@pytest.mark.parametrize("design", mostly_integration(["cpu", "split", "dense"], fast={"split"}))
def test_gates_beyond_their_limit(design: str, limit: float | None, tmp_path: Path) -> None:
    """Where SwiGLU is not linear, its constants matter."""
    loud = Changed(changes={"gate_up_proj_scales": louder, "gate_up_proj_bias": louder})
    source = write_checkpoint(tmp_path / "source", SMALL, seed=3, profile=loud)
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["swiglu_limit"] = limit
    kept = {name: value for name, value in config.items() if value is not None}
    (source / "config.json").write_text(json.dumps(kept), "utf-8")
    if design == "cpu":
        ours = logits(graph(source, tmp_path / "graph"), ids(), PIECES)
    else:
        ours = directml_logits(directml_graph(source, tmp_path / "graph", design, ir.DataType.FLOAT, **DENSE32))
    assert relative(expected(source), ours) < FLOAT32


def test_gates_beyond_float16(tmp_path: Path) -> None:
    def some_rows(scales: Array) -> Array:
        scales = scales.copy()
        scales[:, :8] += np.uint8(18)
        return scales

    source = write_checkpoint(
        tmp_path / "source", SMALL, seed=3, profile=Changed(changes={"gate_up_proj_scales": some_rows})
    )
    ours = directml_logits(directml_graph(source, tmp_path / "graph", "split", ir.DataType.FLOAT16))
    assert relative_by_token(expected(source), ours) < FLOAT16


@pytest.mark.parametrize(
    ("target", "preset"), [(directml.target, "best"), (cuda.target, "lossless")], ids=["directml", "cuda"]
)
@pytest.mark.parametrize("largest", [80_000, 400_000])
def test_a_stream_beyond_float16(target: Callable[[], Target], preset: str, largest: float, tmp_path: Path) -> None:
    """A stream as large as gpt-oss-120b's, whose biases still fit float16, and one four times as large."""
    source = write_checkpoint(tmp_path / "source", DIMENSIONS, seed=3, profile=SHARP.scale_to(largest))
    ours = on_cpu(target(), source, tmp_path / "graph", preset)
    assert relative_by_token(expected(source), ours) < FLOAT16


@pytest.mark.parametrize("module", [directml, cuda], ids=["directml", "cuda"])
@pytest.mark.parametrize("preset", ["balanced", "smallest"])
def test_integers_beyond_float16_are_those_of_float32(module: Any, preset: str, tmp_path: Path) -> None:
    """The codes are the same, whatever the size that rows are stored at."""
    source = write_checkpoint(tmp_path / "source", DIMENSIONS, seed=3, profile=Profile().scale_to(400_000))
    in_float32 = on_cpu(module.target(dtype=ir.DataType.FLOAT), source, tmp_path / "float32", preset)
    assert relative_by_token(in_float32, on_cpu(module.target(), source, tmp_path / "float16", preset)) < FLOAT16


@pytest.mark.parametrize(("embedding", "near"), [("float16", FLOAT16), ("int8", 5e-2)], ids=["float16", "int8"])
def test_embeddings_of_every_size(embedding: str, near: float, tmp_path: Path) -> None:
    """Rows from 2^-18, whose scales underflow in float16, to 2^18, which overflows."""

    def by_token(table: Array) -> Array:
        return np.ldexp(table, (np.arange(len(table)) % 37 - 18)[:, None])

    changes = DIMENSIONS | {"rms_norm_eps": 1e-20}
    source = write_checkpoint(tmp_path / "source", changes, seed=3, profile=Changed(changes={"embed_tokens": by_token}))
    ours = on_cpu(directml.target(), source, tmp_path / "graph", "best", embedding=embedding)
    assert relative_by_token(expected(source), ours) < near
