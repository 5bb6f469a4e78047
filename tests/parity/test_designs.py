"""One model composed in several ways gives the same numbers. Other files compare them with transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_convert import targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.graph.head import Logits
from gptoss_convert.graph.pieces import Limit
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import write_checkpoint
from gptoss_convert.targets import Target, directml

from .checkpoints import relative
from .conftest import SMALL, VARIANTS
from .decoding import logits

LENGTH = 80
PATHS = {"prefill": [LENGTH], "decode": [50, *[1] * 30]}
LIMIT = Limit(1 << 16)


def on_the_cpu(limit: Limit) -> Target:
    """The composition of a conversion's first run."""
    target = directml.target("split", ir.DataType.FLOAT, limit)
    assert target.on_cpu is not None
    return replace(target, compose=target.on_cpu)


def of_design(name: str) -> Callable[[Limit], Target]:
    return lambda limit: directml.target(name, ir.DataType.FLOAT, limit)


def run(checkpoint: Path, out: Path, target: Target, sizes: list[int], which: Logits = "all") -> NDArray[np.float32]:
    ids = generate_sequences(SMALL["vocab_size"], count=1, length=LENGTH)[0]
    if not out.exists():
        out.mkdir()
        quantisation = resolve(target.presets, target.default_preset)
        export(Checkpoint.open(checkpoint), target, quantisation, out, logits=which)
    max_length = LENGTH + 1 if target.name == "directml" else None
    return logits(out / "model.onnx", ids, sizes, max_length=max_length)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("variant", ["many experts", "one expert"])
def test_directmls_designs_agree(variant: str, path: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", SMALL | VARIANTS[variant], seed=1)
    makers = {"grouped": on_the_cpu, "split": of_design("split"), "dense": of_design("dense")}
    rows = {name: run(source, tmp_path / name, make(LIMIT), PATHS[path]) for name, make in makers.items()}
    for name in ("split", "dense"):
        assert relative(rows["grouped"], rows[name]) < 1e-5, name


@pytest.mark.parametrize("path", PATHS)
def test_pieces_give_the_same_as_the_whole(path: str, tmp_path: Path) -> None:
    """Pieces of the experts and of the head."""
    source = write_checkpoint(tmp_path / "source", SMALL, seed=1)
    cut, whole = (
        run(source, tmp_path / str(limit), of_design("split")(Limit(limit)), PATHS[path])
        for limit in (LIMIT.nbytes, 1 << 30)
    )
    assert relative(whole, cut) < 1e-5


@pytest.mark.parametrize("name", ["cpu", "directml"])
def test_the_last_position_equals_that_of_all_logits(name: str, tmp_path: Path) -> None:
    """DirectML's head is split into pieces."""
    source = write_checkpoint(tmp_path / "source", SMALL, seed=1)
    target = directml.target(limit=LIMIT) if name == "directml" else targets.load(name)
    for sizes in ([LENGTH], [50, 29, 1]):
        every, last = (
            run(source, tmp_path / f"{which}{len(sizes)}", target, sizes, which) for which in ("all", "last")
        )
        assert last.shape == (len(sizes), SMALL["vocab_size"])
        ends = np.cumsum(sizes) - 1
        np.testing.assert_allclose(last, every[ends], rtol=0, atol=1e-3)
