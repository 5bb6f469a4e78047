"""nano's skills through the artifact: the answers must be those of the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss_convert import targets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.export import export
from gptoss_convert.nano.skills import SKILLS, held_out
from gptoss_convert.parity.checkpoint_reference import CheckpointReference
from gptoss_convert.parity.measure import measure, record_parity
from gptoss_convert.parity.metrics import compare
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.schemes import resolve
from gptoss_convert.workflow import Options, convert
from gptoss_runtime import Engine, GenerationOptions, load_engine
from gptoss_runtime.artifact.folder import Artifact
from tools.nano_training.evaluate import predict_greedily
from tools.transformers_reference import load_transformers, transformers_logits

from .decoding import logits

N = 12  # samples per skill; tools.nano_training.evaluate measures more
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def reference(nano_checkpoint: Path) -> Any:
    return load_transformers(nano_checkpoint)


@pytest.fixture(scope="module")
def exact_graph(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Native MXFP4 with float32 dense weights, logits of all positions."""
    target, checkpoint = targets.load("cpu"), Checkpoint.open(nano_checkpoint)
    return export(
        checkpoint, target, resolve(target.presets, "lossless"), tmp_path_factory.mktemp("exact"), logits="all"
    ).model


@pytest.fixture(scope="module")
def lossless(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    out = tmp_path_factory.mktemp("lossless") / "gptoss-nano"
    convert(nano_checkpoint, out, options=Options(preset="lossless"))
    with load_engine(out, threads=1) as engine:
        yield engine


def answer(engine: Engine, prompt: list[int], most: int) -> list[int]:
    with engine.generate(prompt, GenerationOptions(temperature=0.0, max_new_tokens=most)) as generation:
        return list(generation)


@pytest.mark.parametrize("skill", SKILLS)
def test_greedy_answers_are_the_checkpoints(skill: str, lossless: Engine, reference: Any) -> None:
    samples = held_out(skill, N)
    pairs = [(s.prompt_ids, answer(lossless, s.prompt_ids, len(s.answer_ids) + 4)) for s in samples]
    assert [new for _, new in pairs] == predict_greedily(reference, pairs)


@pytest.mark.parametrize("skill", SKILLS)
def test_logits_along_an_answer(skill: str, exact_graph: Path, reference: Any) -> None:
    sample = max(held_out(skill, N), key=lambda sample: len(sample.prompt_ids))
    ids = sample.prompt_ids + sample.answer_ids
    apart = compare(transformers_logits(reference, ids), logits(exact_graph, ids, [len(ids)]))
    assert apart.max_abs.max() < 1e-3
    assert apart.same_top.all()


def test_the_default_artifact_keeps_the_skills(nano_artifact: Path, record_property: Any) -> None:
    shares = {}
    with load_engine(nano_artifact, threads=1) as engine:
        for skill in SKILLS:
            samples = held_out(skill, N)
            right = [answer(engine, s.prompt_ids, len(s.answer_ids) + 4) == s.answer_ids for s in samples]
            shares[skill] = sum(right) / N
    record_property("exact", shares)
    assert np.mean(list(shares.values())) >= 0.85, shares
    assert min(shares.values()) >= 0.6, shares


def test_measuring_and_recording(nano_checkpoint: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "gptoss-nano"
    convert(nano_checkpoint, artifact, options=Options(preset="lossless", logits="all"))
    ids = generate_sequences(201_088, count=2, length=100)
    summary = measure(artifact, CheckpointReference(Checkpoint.open(nano_checkpoint), ids, "conversations")).summary()
    assert summary.tokens == 300
    assert summary.max_abs < 5e-3
    assert summary.top1 == 1
    record_parity(artifact, summary)
    again = Artifact.open(artifact, verify=True).manifest
    assert again is not None
    assert again.parity == summary
