"""Token sequences for an artifact and its reference.

Models with the o200k_harmony vocabulary get harmony conversations, made of samples of nano's skills; all others get
random ids. Sequences are longer than the sliding window. Users can give a text instead.
"""

from __future__ import annotations

import random
from pathlib import Path

from gptoss_convert.nano import skills
from gptoss_runtime.errors import InvalidRequest
from gptoss_runtime.harmony_tokens import VOCAB_SIZE

COUNT, LENGTH = 4, 320


def generate_sequences(vocab_size: int, *, count: int = COUNT, length: int = LENGTH, seed: int = 0) -> list[list[int]]:
    """Generates token id sequences; the same arguments give the same sequences.

    Args:
        vocab_size: of the model.
        count: number of sequences.
        length: tokens in each.
        seed: of the random choices.
    """
    rng = random.Random(f"parity {seed}")
    if vocab_size != VOCAB_SIZE:
        return [[rng.randrange(vocab_size) for _ in range(length)] for _ in range(count)]
    return [_generate_conversation(rng, length) for _ in range(count)]


def describe_sequences(vocab_size: int, seed: int) -> str:
    """Describes the result of :func:`generate_sequences` in words."""
    return f"{'random ids' if vocab_size != VOCAB_SIZE else 'harmony conversations'}, seed {seed}"


def tokenize_text(text: Path, tokenizer: Path, *, count: int = COUNT, length: int = LENGTH) -> list[list[int]]:
    """Tokenizes a text and splits it into sequences.

    Args:
        text: a UTF-8 file; special tokens such as ``<|start|>`` are recognised.
        tokenizer: the tokenizer.json.
        count: maximum number of sequences; the rest of a longer text is not used.
        length: tokens in each; the last may be shorter.

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
    except Exception as error:  # tokenizers raises no more specific class
        raise InvalidRequest(f"{tokenizer}: {error}", remedy=remedy) from error
    cut = [ids[at : at + length] for at in range(0, min(len(ids), count * length), length)]
    if not cut or len(cut[0]) < 2:
        raise InvalidRequest(f"{text} has {len(ids)} tokens", remedy="Give a text of two tokens or more.")
    return cut


def _generate_conversation(rng: random.Random, length: int) -> list[int]:
    """Concatenates held-out samples of nano's skills."""
    ids: list[int] = []
    while len(ids) < length:
        skill = rng.choice(skills.SKILLS)
        setting = skills.draw_setting(rng, with_tools=skill in skills.TOOL_SKILLS)
        sample = skills.draw_sample(skill, rng, setting, held_out=True)
        ids += sample.prompt_ids + sample.answer_ids
    return ids[:length]
