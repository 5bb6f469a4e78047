"""What is fed to an artifact and its reference.

Knows that a model with the o200k_harmony vocabulary, whatever its size, reads nano's harmony conversations as text; any
other gets random ids. Sequences are long enough to leave the sliding window behind.
"""

from __future__ import annotations

import random

from gptoss_convert.nano import skills
from gptoss_convert.nano.vocabulary import SIZE


def sequences(vocab_size: int, *, count: int = 4, length: int = 320, seed: int = 0) -> list[list[int]]:
    """Token id sequences, the same for the same arguments.

    Args:
        vocab_size: of the model.
        count: how many.
        length: tokens in each.
        seed: of the choice.
    """
    rng = random.Random(f"parity {seed}")
    if vocab_size != SIZE:
        return [[rng.randrange(vocab_size) for _ in range(length)] for _ in range(count)]
    return [_conversation(rng, length) for _ in range(count)]


def _conversation(rng: random.Random, length: int) -> list[int]:
    """Held-out exchanges of nano's skills, end to end."""
    ids: list[int] = []
    while len(ids) < length:
        skill = rng.choice(skills.SKILLS)
        where = skills.setting(rng, with_tools=skill in skills.TOOL_SKILLS)
        sample = skills.sample(skill, rng, where, held=True)
        ids += sample.prompt_ids + sample.answer_ids
    return ids[:length]
