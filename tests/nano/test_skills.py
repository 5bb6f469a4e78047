from __future__ import annotations

import random

import pytest

from gptoss_convert.nano import skills
from gptoss_convert.nano.render import CALL, RETURN
from gptoss_convert.nano.skills.base import is_held_out


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_held_out_samples_are_disjoint_from_training_and_reproducible(skill: str) -> None:
    held = skills.held_out(skill, 60)
    assert held == skills.held_out(skill, 60)
    assert held != skills.held_out(skill, 60, seed=1)
    assert all(is_held_out(f"{skill}: {sample.key}") for sample in held)
    assert len({(sample.setting, sample.messages) for sample in held}) == 60
    keys = {sample.key for sample in held}
    rng = random.Random(0)
    for _ in range(300):
        where = skills.draw_setting(rng, with_tools=skill in skills.TOOL_SKILLS)
        assert skills.draw_sample(skill, rng, where, held_out=False).key not in keys


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_answers_end_the_turn(skill: str) -> None:
    for sample in skills.held_out(skill, 60):
        assert sample.answer_ids[-1] == (CALL if sample.answer[-1].call else RETURN)
        assert not {CALL, RETURN} & set(sample.answer_ids[:-1])


def test_reasoning_grows_with_the_effort() -> None:
    lengths: dict[str, list[int]] = {"low": [], "medium": [], "high": []}
    for sample in skills.held_out("effort", 100):
        thoughts = [message.text for message in sample.answer if message.channel == "analysis"]
        lengths[sample.setting.effort].append(sum(map(len, thoughts)))
    assert max(lengths["low"]) == 0 < min(lengths["medium"]) <= max(lengths["medium"]) < min(lengths["high"])


def test_an_unknown_skill_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        skills.held_out("flying", 1)
