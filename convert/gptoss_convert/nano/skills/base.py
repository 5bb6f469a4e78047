"""Shared by the generators of skills: drafts, and the rule that decides which samples are held out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptoss_convert.nano.render import Effort, Message, Setting, analysis


@dataclass(frozen=True)
class Draft:
    """A sample before it is rendered.

    Attributes:
        key: identifies the sample's content; its hash alone decides whether the sample is held out.
        history: the messages up to the assistant's turn.
        answer: the assistant's messages of this turn.
    """

    key: str
    history: list[Message]
    answer: list[Message]


Generator = Callable[[random.Random, Setting], Draft]


def is_held_out(key: str) -> bool:
    """Whether samples with this key are excluded from training: one key in ten, by its SHA-256."""
    return hashlib.sha256(key.encode()).digest()[0] % 10 == 0


def reason(effort: Effort, medium: str, high: str) -> list[Message]:
    """The analysis message for an effort: none at low, ``medium`` at medium, ``high`` at high."""
    return {"low": [], "medium": [analysis(medium)], "high": [analysis(high)]}[effort]


def join_words(items: Sequence[str]) -> str:
    """``a``, ``a and b`` or ``a, b and c``."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
