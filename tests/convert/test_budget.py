"""Memory budgets of the real models, computed from their dimensions without any weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptoss_convert.artifact import memory_budget
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export, weights_size
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import write_checkpoint
from gptoss_convert.targets import Target, cuda, directml


@pytest.fixture(scope="module")
def gpt_oss_20b(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("20b"), hollow=True, shards=3))


@pytest.mark.parametrize("target", [directml.TARGET, cuda.TARGET], ids=lambda target: target.name)
@pytest.mark.parametrize("preset", ["balanced", "smallest"])
def test_the_20b_has_room_on_a_card_of_16_gb(preset: str, target: Target, gpt_oss_20b: Checkpoint) -> None:
    size = weights_size(gpt_oss_20b, target, resolve(target.presets, preset))
    budget = memory_budget(gpt_oss_20b.config, target, size)
    assert size < 13e9
    assert budget.context == 8192
    assert budget.peak < 14e9
    assert budget.at(131072) == budget.at(8192) + (131072 - 8192) * (budget.kv_per_token + budget.work_per_token)


def test_the_size_is_that_of_the_file(tiny: Path, tmp_path: Path) -> None:
    checkpoint, target = Checkpoint.open(tiny), directml.TARGET
    quantisation = resolve(target.presets, "balanced")
    written = export(checkpoint, target, quantisation, tmp_path)
    assert weights_size(checkpoint, target, quantisation) == written.weights.nbytes
