"""What is fed to an artifact and its reference.

Knows that a model with the o200k_harmony vocabulary, whatever its size, reads nano's harmony conversations as text; any
other gets random ids. Sequences are long enough to leave the sliding window behind. A text of one's own is cut.
"""

from __future__ import annotations

import random
from pathlib import Path

from gptoss_convert.nano import skills
from gptoss_runtime.errors import InvalidRequest
from gptoss_runtime.harmony_tokens import VOCAB_SIZE

COUNT, LENGTH = 4, 320


def sequences(vocab_size: int, *, count: int = COUNT, length: int = LENGTH, seed: int = 0) -> list[list[int]]:
    """Token id sequences, the same for the same arguments.

    Args:
        vocab_size: of the model.
        count: how many.
        length: tokens in each.
        seed: of the choice.
    """
    rng = random.Random(f"parity {seed}")
    if vocab_size != VOCAB_SIZE:
        return [[rng.randrange(vocab_size) for _ in range(length)] for _ in range(count)]
    return [_conversation(rng, length) for _ in range(count)]


def describe(vocab_size: int, seed: int) -> str:
    """What :func:`sequences` are, in words."""
    return f"{'random ids' if vocab_size != VOCAB_SIZE else 'harmony conversations'}, seed {seed}"


def text_sequences(text: Path, tokenizer: Path, *, count: int = COUNT, length: int = LENGTH) -> list[list[int]]:
    """The tokens of a text, cut into sequences.

    Args:
        text: a file, UTF-8; special tokens such as ``<|start|>`` are read as such.
        tokenizer: the tokenizer.json.
        count: sequences, at most; what is left of a longer text is not used.
        length: tokens in each; of the last perhaps fewer.

    Raises:
        InvalidRequest: a file cannot be read, or the text has fewer than two tokens.
    """
    from tokenizers import Tokenizer

    remedy = "Give a file of UTF-8 text, and a checkpoint or artifact with its tokenizer.json."
    try:
        content, definition = text.read_text(encoding="utf-8"), tokenizer.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{text}: {error}", remedy=remedy) from error
    try:
        ids: list[int] = Tokenizer.from_str(definition).encode(content, add_special_tokens=False).ids
    except Exception as error:  # the library raises no other class
        raise InvalidRequest(f"{tokenizer}: {error}", remedy=remedy) from error
    cut = [ids[at : at + length] for at in range(0, min(len(ids), count * length), length)]
    if not cut or len(cut[0]) < 2:
        raise InvalidRequest(f"{text} has {len(ids)} tokens", remedy="Give a text of two tokens or more.")
    return cut


def _conversation(rng: random.Random, length: int) -> list[int]:
    """Held-out exchanges of nano's skills, end to end."""
    ids: list[int] = []
    while len(ids) < length:
        skill = rng.choice(skills.SKILLS)
        where = skills.setting(rng, with_tools=skill in skills.TOOL_SKILLS)
        sample = skills.sample(skill, rng, where, held=True)
        ids += sample.prompt_ids + sample.answer_ids
    return ids[:length]
