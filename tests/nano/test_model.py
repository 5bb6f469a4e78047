"""The checkpoint in transformers, compared with the model that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_convert import mxfp4
from gptoss_convert.nano import skills, source_dir, tensors
from gptoss_convert.nano.folder import WEIGHTS

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.tiers import mostly_integration  # noqa: E402
from tools.nano_training import evaluate, rounding  # noqa: E402
from tools.nano_training.batch import collate  # noqa: E402
from tools.nano_training.compact import token_classes  # noqa: E402
from tools.nano_training.model import Nano, NanoConfig  # noqa: E402


def as_float(found: dict[str, NDArray[Any]], name: str) -> Any:
    if name in found:
        return torch.from_numpy(found[name].copy()).view(torch.bfloat16).float()
    return torch.from_numpy(mxfp4.decode(found[f"{name}_blocks"], found[f"{name}_scales"]))


@pytest.fixture(scope="module")
def source() -> dict[str, NDArray[Any]]:
    return tensors.read(source_dir() / WEIGHTS)


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return evaluate.load(checkpoint)


@pytest.fixture(scope="module")
def trained(source: dict[str, NDArray[Any]]) -> Any:
    model = Nano(NanoConfig(), len(source["used_tokens"]) + 1)
    model.load_state_dict({name: as_float(source, name) for name in model.state_dict()})
    return model.eval()


def test_weights_arrive_bit_for_bit(checkpoint: Path, reference: Any) -> None:
    found = tensors.read(checkpoint / "model.safetensors")
    for name, weight in reference.state_dict().items():
        expected = as_float(found, name)
        if name.endswith(("gate_up_proj", "down_proj")):
            expected = expected.transpose(1, 2)  # transformers keeps experts [E, in, out]
        assert torch.equal(weight, expected), name


@pytest.mark.parametrize("skill", mostly_integration(skills.SKILLS, fast={"facts", "tools"}))
def test_logits_agree(skill: str, source: dict[str, NDArray[Any]], trained: Any, reference: Any) -> None:
    used = torch.from_numpy(source["used_tokens"].astype(np.int64))
    group = skills.held_out(skill, 1)
    batch = collate([group], token_classes(source["used_tokens"]), trained.config.sliding_window)
    ids = torch.tensor([group[0].prompt_ids + group[0].answer_ids[:-1]])
    with torch.inference_mode():
        ours = trained(batch)
        theirs = reference(input_ids=ids, use_cache=False).logits[0, len(group[0].prompt_ids) - 1 :]
    assert (ours[:, :-1] - theirs[:, used]).abs().max() < 1e-3  # logits reach 40
    # "any other token" has exactly the probability of all other tokens
    ours, theirs = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
    assert (ours[:, :-1] - theirs[:, used]).abs().max() < 1e-3  # logits reach 40


@pytest.mark.integration
def test_a_group_is_as_good_as_its_samples_alone(source: dict[str, NDArray[Any]], trained: Any) -> None:
    import random

    rng = random.Random(3)
    groups = []
    for _ in range(2):
        where = skills.draw_setting(rng, with_tools=True)
        groups.append([skills.draw_sample("tools", rng, where, held_out=True) for _ in range(3)])
    classes, window = token_classes(source["used_tokens"]), trained.config.sliding_window
    with torch.inference_mode():
        together = trained(collate(groups, classes, window))
        alone = torch.cat([trained(collate([[sample]], classes, window)) for group in groups for sample in group])
    assert (together - alone).abs().max() < 1e-3  # logits reach 40


@pytest.mark.integration
def test_nano_answers(reference: Any) -> None:
    right = [
        answer for skill in skills.SKILLS for answer in evaluate.answers_exactly(reference, skills.held_out(skill, 8))
    ]
    assert sum(right) / len(right) >= 0.9


@pytest.mark.integration
def test_generation_agrees_with_one_pass(reference: Any) -> None:
    for skill in ("arithmetic", "tools"):
        sample = min(skills.held_out(skill, 20), key=lambda one: len(one.answer_ids))
        prompt = torch.tensor([sample.prompt_ids])
        with torch.inference_mode():
            out = reference.generate(prompt, do_sample=False, max_new_tokens=len(sample.answer_ids))
        same = out[0, prompt.shape[1] :].tolist() == sample.answer_ids
        assert [same] == evaluate.answers_exactly(reference, [sample])


def test_rounding_is_what_mxfp4_can_hold() -> None:
    weight = torch.randn(4, 6, 64, generator=torch.Generator().manual_seed(0)) * 10
    rounded = rounding.to_mxfp4(weight)
    assert np.array_equal(mxfp4.decode(*mxfp4.encode(rounded.numpy())), rounded.numpy())
    assert torch.equal(rounding.to_mxfp4(rounded), rounded)
    assert (rounded - weight).abs().max() <= weight.abs().max() / 5


@pytest.mark.integration
def test_ablations_change_the_model(checkpoint: Path, reference: Any) -> None:
    sample = skills.held_out("facts", 1)[0]
    ids = torch.tensor([sample.prompt_ids])
    with torch.inference_mode():
        whole = reference(input_ids=ids).logits[0, -1]
        for ablation in evaluate.ABLATIONS:
            other = evaluate.load(checkpoint, ablation)(input_ids=ids).logits[0, -1]
            assert (whole - other).abs().max() > 0.01, ablation
