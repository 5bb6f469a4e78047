"""The manifest's memory budget, compared with the memory that the real DirectML takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.graph.pieces import Limit
from gptoss_convert.synthetic import write_checkpoint
from gptoss_convert.targets import directml

from .lab.lab import Lab
from .measuring import SCALED_DOWN, graph, measure

LIMIT = Limit(9 << 20)  # small enough that the 32 experts run in pieces, as the 20b's do


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("scaled"), SCALED_DOWN, seed=3)


@pytest.mark.parametrize("max_length", [256, 2048])
def test_the_budget_is_an_upper_bound(
    lab: Lab, checkpoint: Path, max_length: int, tmp_path: Path, record_property: Any
) -> None:
    target = directml.target(limit=LIMIT)
    budget = graph(checkpoint, target, tmp_path / "graph")
    taken = measure(lab, tmp_path / "graph", [128, 1, 1], max_length)
    peak = max(run["peak"] for run in taken["runs"])
    record_property("figures", {"budget": budget.at(max_length), "peak": peak, **taken})
    assert taken["loaded"] == pytest.approx(budget.weights, rel=0.06)  # loaded once
    assert peak <= budget.at(max_length)
    assert peak >= budget.at(max_length) * 0.7  # and the budget is not much too large


def test_pieces_keep_a_prompt_small(lab: Lab, checkpoint: Path, tmp_path: Path) -> None:
    """Dequantising all 32 experts at once takes several times the memory of the pieces."""
    whole = directml.target(limit=Limit(1 << 30))
    graph(checkpoint, whole, tmp_path / "whole")
    graph(checkpoint, directml.target(limit=LIMIT), tmp_path / "pieces")
    over = {}
    for name in ("whole", "pieces"):
        taken = measure(lab, tmp_path / name, [128], 256)
        over[name] = taken["runs"][0]["peak"] - taken["with_cache"]
    assert over["whole"] > 2 * over["pieces"]
