"""nano's logits on the real DirectML in float16, as trained and with the activations of real checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.nano.skills import SKILLS, held_out
from gptoss_convert.parity.metrics import Comparison, compare
from gptoss_convert.schemes import resolve
from gptoss_convert.synthetic import amplify
from gptoss_convert.targets import directml
from tests.parity import decoding
from tests.parity.conftest import SHIFTS
from tools.transformers_reference import load_transformers, transformers_logits

from .jobs import Jobs
from .lab.lab import Lab

MAX_LENGTH = 512
SAMPLES = [(s.prompt_ids, s.answer_ids) for skill in SKILLS for s in held_out(skill, 1)]
GRAPHS = {
    "balanced": ("as trained", "balanced"),
    "best": ("as trained", "best"),
    "balanced, stream of 1e5": ("stream of 1e5", "balanced"),
    "best, stream of 4e6": ("stream of 4e6", "best"),
    "best, all at once": ("all at once", "best"),
}
LARGE = list(GRAPHS)[2:]


@pytest.fixture(scope="module")
def models(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The artifacts' graphs, with logits for all positions."""
    root, found = tmp_path_factory.mktemp("nano"), {}
    for number, (name, (shifts, preset)) in enumerate(GRAPHS.items()):
        checkpoint = amplify(nano_checkpoint, root / f"checkpoint {number}", SHIFTS[shifts])
        folder = root / "graphs" / str(number)
        folder.mkdir(parents=True)
        quantisation = resolve(directml.TARGET.presets, preset)
        opened = Checkpoint.open(checkpoint)
        found[name] = export(opened, directml.TARGET, quantisation, folder, logits="all").model
    return found


@pytest.fixture(scope="module")
def runs(lab: Lab, models: dict[str, Path]) -> Jobs:
    jobs = Jobs(models["best"].parents[1])
    for name, model in models.items():
        for number, (prompt, answer) in enumerate(SAMPLES):
            ids = prompt + answer
            jobs.add(f"{name} {number}", model, ids, [len(ids)], MAX_LENGTH)
    jobs.run(lab)
    return jobs


@pytest.fixture(scope="module")
def reference(nano_checkpoint: Path) -> Any:
    return load_transformers(nano_checkpoint)


def answer_logits(runs: Jobs, name: str, number: int) -> Any:
    """The logits from which an answer's tokens are chosen."""
    prompt, answer = SAMPLES[number]
    return runs.logits(f"{name} {number}")[len(prompt) - 1 : len(prompt) + len(answer) - 1]


@pytest.mark.parametrize("name", GRAPHS)
def test_answers_are_the_checkpoints(name: str, runs: Jobs, reference: Any, record_property: Any) -> None:
    """At every size of activations. A greedy answer is equal if every token is the most likely one after its prefix."""
    parts = []
    for number, (prompt, answer) in enumerate(SAMPLES):
        expected = transformers_logits(reference, prompt + answer)[len(prompt) - 1 : -1]
        parts.append(compare(expected, answer_logits(runs, name, number)))
    joined = Comparison.concatenate(parts)
    figures = {"positions": len(joined.kl), "top1": float(joined.same_top.mean()), "kl": float(joined.kl.mean())}
    record_property(name, figures)
    print(name, figures)
    assert joined.same_top.all()
    assert joined.kl.mean() < (1e-6 if name.startswith("best") else 1e-3)


@pytest.mark.parametrize("name", [name for name in LARGE if "stream" in name])
def test_the_size_of_the_stream_changes_no_bit(name: str, runs: Jobs) -> None:
    """As on the CPU: float16 values come from a norm, or from weight rows scaled to a common size."""
    preset = GRAPHS[name][1]
    for number in range(len(SAMPLES)):
        np.testing.assert_array_equal(answer_logits(runs, name, number), answer_logits(runs, preset, number))


def test_the_cpu_gives_the_same(models: dict[str, Path], runs: Jobs) -> None:
    for number, (prompt, answer) in enumerate(SAMPLES):
        ids = prompt + answer
        on_cpu = decoding.logits(models["balanced"], ids, [len(ids)], max_length=MAX_LENGTH)[len(prompt) - 1 : -1]
        apart = compare(on_cpu, answer_logits(runs, "balanced", number))
        assert apart.same_top.all()
        assert apart.kl.mean() < 1e-4
