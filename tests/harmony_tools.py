"""Helpers for tests that write harmony and grammars as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine.grammar import Constraint
from gptoss_runtime.harmony_tokens import RETURN, VOCAB_SIZE


def encode_marked(harmony: Harmony, text: str) -> list[int]:
    """Encodes text in which special tokens are written by name."""
    ids: list[int] = harmony._encoding.encode(text, allowed_special="all")
    return ids


def compile_constraint(tokenizer: Path, grammar: str, stops: Sequence[int] = (RETURN,)) -> Constraint:
    return Constraint(tokenizer, grammar, vocab_size=VOCAB_SIZE, stops=stops)
