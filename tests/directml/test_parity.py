"""The real DirectML's logits against transformers and against the same graph on the CPU.

Every session has CPU fallback disabled. All runs of a kind share one start of Windows' Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_convert.parity.metrics import compare
from gptoss_convert.parity.sequences import generate_sequences
from tests.parity import decoding
from tests.parity.checkpoints import relative
from tests.parity.conftest import SMALL, write_variant
from tests.parity.test_graphs import DENSE32, directml_graph
from tools.transformers_reference import load_transformers, transformers_logits

from .jobs import Jobs
from .lab.lab import Lab

CHOSEN = ("grouped heads", "many experts", "tiny window", "massive channels")
TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}
LENGTH, MAX_LENGTH = 100, 128  # three windows of the widest
PATHS = {"prefill": [LENGTH], "decode": [36, *[1] * (LENGTH - 36)], "pieces": [36, 63, 1]}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {name: write_variant(tmp_path_factory.mktemp("variant"), name, seed=5) for name in CHOSEN}


@pytest.fixture(scope="module")
def graphs(checkpoints: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Graphs by "variant, type, design": the target's default design for all variants, the other designs for one."""
    folder, wanted = tmp_path_factory.mktemp("graphs"), {}
    for variant, checkpoint in checkpoints.items():
        for dtype, code in TYPES.items():
            designs = ("split", "slots", "dense") if (variant, dtype) == ("many experts", "float32") else ("split",)
            for design in designs:
                name = f"{variant}, {dtype}, {design}"
                dense = DENSE32 if dtype == "float32" else {}
                wanted[name] = directml_graph(checkpoint, folder / name.replace(", ", "-"), design, code, **dense)
    return wanted


@pytest.fixture(scope="module")
def runs(lab: Lab, graphs: Mapping[str, Path]) -> Jobs:
    jobs = Jobs(next(iter(graphs.values())).parents[1])
    ids = generate_sequences(SMALL["vocab_size"], count=1, length=LENGTH)[0]
    for name, model in graphs.items():
        for path, pieces in PATHS.items():
            if name.endswith("slots"):
                pieces = [1] * LENGTH
            jobs.add(f"{name}, {path}", model, ids, pieces, MAX_LENGTH)
    jobs.run(lab)
    return jobs


def expected(checkpoint: Path) -> NDArray[np.float32]:
    ids = generate_sequences(SMALL["vocab_size"], count=1, length=LENGTH)[0]
    return transformers_logits(load_transformers(checkpoint), ids)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("variant", CHOSEN)
def test_float32_agrees_with_transformers_and_the_cpu(
    variant: str, path: str, runs: Jobs, checkpoints: Mapping[str, Path], graphs: Mapping[str, Path]
) -> None:
    ids = generate_sequences(SMALL["vocab_size"], count=1, length=LENGTH)[0]
    name = f"{variant}, float32, split"
    ours = runs.logits(f"{name}, {path}")
    assert relative(expected(checkpoints[variant]), ours) < 1e-4
    on_cpu = decoding.logits(graphs[name], ids, PATHS[path], max_length=MAX_LENGTH)
    assert relative(on_cpu, ours) < 1e-4


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("variant", CHOSEN)
def test_float16_stays_near(
    variant: str, path: str, runs: Jobs, checkpoints: Mapping[str, Path], record_property: Any
) -> None:
    """Random weights are the worst case: near ties everywhere, including the router."""
    reference, ours = expected(checkpoints[variant]), runs.logits(f"{variant}, float16, split, {path}")
    record_property("relative", float(relative(reference, ours)))
    assert relative(reference, ours) < (3e-2 if variant == "massive channels" else 2e-2)  # with twice the layers
    assert compare(reference, ours).kl.mean() < 1e-3


@pytest.mark.parametrize("design", ["slots", "dense"])
def test_every_design_gives_the_same(design: str, runs: Jobs) -> None:
    for path in PATHS:
        one, other = (runs.logits(f"many experts, float32, {name}, {path}") for name in ("split", design))
        assert relative(one, other) < 1e-5
