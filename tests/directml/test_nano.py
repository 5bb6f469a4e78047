"""nano's own numbers on the real DirectML: float16, int4 experts, as its artifact has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.nano.skills import SKILLS, held_out
from gptoss_convert.parity.metrics import Comparison, compare
from gptoss_convert.parity.reference import load_transformers, transformers_logits
from gptoss_convert.schemes import resolve
from gptoss_convert.targets import directml
from tests.parity import decoding

from .jobs import Jobs
from .lab.lab import Lab

MAX_LENGTH = 512
SAMPLES = [(s.prompt_ids, s.answer_ids) for skill in SKILLS for s in held_out(skill, 2)]


@pytest.fixture(scope="module")
def model(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact's graph, but with logits of all positions."""
    folder = tmp_path_factory.mktemp("nano") / "graph"
    folder.mkdir()
    target = directml.TARGET
    quantisation = resolve(target.presets, target.default_preset)
    return export(Checkpoint.open(nano_checkpoint), target, quantisation, folder, logits="all").model


@pytest.fixture(scope="module")
def runs(lab: Lab, model: Path) -> Jobs:
    jobs = Jobs(model.parents[1])
    for number, (prompt, answer) in enumerate(SAMPLES):
        ids = prompt + answer
        jobs.add(str(number), model, ids, [len(ids)], MAX_LENGTH)
    jobs.run(lab)
    return jobs


def test_top_1_agrees_along_the_answers(model: Path, runs: Jobs, nano_checkpoint: Path, record_property: Any) -> None:
    """With the checkpoint and with the CPU; a greedy answer is equal if each token follows from those before it."""
    reference = load_transformers(nano_checkpoint)
    parts: dict[str, list[Comparison]] = {"checkpoint": [], "cpu": []}
    for number, (prompt, answer) in enumerate(SAMPLES):
        ids, judged = prompt + answer, slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        ours = runs.logits(str(number))[judged]
        on_cpu = decoding.logits(model, ids, [len(ids)], max_length=MAX_LENGTH)[judged]
        assert (ours.argmax(-1) == on_cpu.argmax(-1)).all(), "the greedy answer is another"
        parts["cpu"].append(compare(on_cpu, ours))
        parts["checkpoint"].append(compare(transformers_logits(reference, ids)[judged], ours))
    for name, compared in parts.items():
        joined = Comparison.joined(compared)
        figures = {"positions": len(joined.kl), "top1": joined.same_top.mean(), "kl": joined.kl.mean()}
        record_property(name, figures)
        print(name, figures)
        assert joined.same_top.mean() >= 0.995, name
