"""Generates samples of nano's skills, for training, evaluation and ``gptoss parity``.

Turns drafts of the skills into token ids, and separates held-out samples from training samples. Needs neither torch nor
openai-harmony.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from gptoss_convert.nano.render import (
    Message,
    Setting,
    generation_prompt,
    render_completion,
    render_history,
    render_prefix,
)
from gptoss_convert.nano.skills import chat, numbers, structured, tools
from gptoss_convert.nano.skills.base import Draft, Generator, is_held_out

GENERATORS: dict[str, Generator] = {
    "greetings": chat.greetings,
    "arithmetic": numbers.arithmetic,
    "facts": chat.facts,
    "json": structured.json_answers,
    "tools": tools.single,
    "two_step": tools.two_step,
    "effort": numbers.effort,
    "conversation": chat.conversation,
}
SKILLS: tuple[str, ...] = tuple(GENERATORS)
TOOL_SKILLS = ("tools", "two_step")
_INSTRUCTIONS = (
    *("You are a helpful assistant.", "Be brief.", "Answer the user.", "You are a friendly assistant."),
    *("Help the user.", "Use the tools when needed.", "Be kind and concise.", "Always answer in English."),
)


@dataclass(frozen=True)
class Sample:
    """A prompt and its only correct answer.

    Attributes:
        skill: one of SKILLS.
        setting: the system and developer messages.
        messages: the conversation up to the assistant's turn.
        answer: the assistant's messages of this turn.
        key: identifies its content; the key's hash decides whether the sample is held out.
    """

    skill: str
    setting: Setting
    messages: tuple[Message, ...]
    answer: tuple[Message, ...]
    key: str

    @property
    def prefix_ids(self) -> list[int]:
        """Token ids of the system and developer messages."""
        return render_prefix(self.setting)

    @property
    def turn_ids(self) -> list[int]:
        """Token ids of the conversation after the prefix, with the generation prompt."""
        return render_history(self.messages) + generation_prompt()

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids of the whole prompt."""
        return self.prefix_ids + self.turn_ids

    @property
    def answer_ids(self) -> list[int]:
        """Token ids that the model should generate, ending in ``<|return|>`` or ``<|call|>``."""
        return render_completion(self.answer)


def draw_setting(rng: random.Random, *, with_tools: bool) -> Setting:
    """Draws a reasoning effort, possibly a date and instructions, and tools if ``with_tools``."""
    date = f"202{rng.randint(4, 9)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}" if rng.random() < 0.5 else ""
    instructions = rng.choice(_INSTRUCTIONS) if rng.random() < 0.2 else ""
    chosen = tools.draw_toolbox(rng) if with_tools else ()
    return Setting(rng.choice(("low", "medium", "medium", "high")), date, instructions, chosen)


def draw_sample(skill: str, rng: random.Random, setting: Setting, *, held_out: bool) -> Sample:
    """Draws a sample of a skill, from the held-out or from the training samples."""
    while True:
        draft: Draft = GENERATORS[skill](rng, setting)
        if is_held_out(f"{skill}: {draft.key}") == held_out:
            return Sample(skill, setting, tuple(draft.history), tuple(draft.answer), draft.key)


def stream(skill: str, seed: int) -> Iterator[Sample]:
    """Yields held-out samples of a skill endlessly, each in its own setting; one in ten with tools it does not need."""
    rng = random.Random(f"{skill} {seed}")
    while True:
        with_tools = skill in TOOL_SKILLS or rng.random() < 0.1
        yield draw_sample(skill, rng, draw_setting(rng, with_tools=with_tools), held_out=True)


def held_out(skill: str, n: int, seed: int = 0) -> list[Sample]:
    """The first ``n`` held-out samples of a skill with different prompts.

    Raises:
        KeyError: there is no such skill.
    """
    if skill not in GENERATORS:
        raise KeyError(skill)
    found: dict[tuple[Setting, tuple[Message, ...]], Sample] = {}
    for candidate in stream(skill, seed):
        found.setdefault((candidate.setting, candidate.messages), candidate)
        if len(found) == n:
            return list(found.values())
    raise AssertionError("the stream is infinite")
