"""Samples of what nano can do, generated: for training, evaluation and parity tests.

Knows how drafts of the skills become token ids and which of them are held out. Free of torch and openai-harmony.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from gptoss_convert.nano.render import Message, Setting, completion, generation_prompt, history, prefix
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
    """A prompt with the one answer that counts as right.

    Attributes:
        skill: one of SKILLS.
        setting: what stands before the conversation.
        messages: the conversation up to the assistant's turn.
        answer: the assistant's messages of this turn.
        key: what makes it new; the hash of this decides whether it is held out.
    """

    skill: str
    setting: Setting
    messages: tuple[Message, ...]
    answer: tuple[Message, ...]
    key: str

    @property
    def prefix_ids(self) -> list[int]:
        """Token ids of the system and developer messages."""
        return prefix(self.setting)

    @property
    def turn_ids(self) -> list[int]:
        """Token ids of the conversation after the prefix, with the generation prompt."""
        return history(self.messages) + generation_prompt()

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids that go into the model."""
        return self.prefix_ids + self.turn_ids

    @property
    def answer_ids(self) -> list[int]:
        """Token ids the model should emit, ending in ``<|return|>`` or ``<|call|>``."""
        return completion(self.answer)

    @property
    def prompt_text(self) -> str:
        """The last message of the prompt."""
        return self.messages[-1].text

    @property
    def answer_text(self) -> str:
        """The last message of the answer: its final text or the arguments of its call."""
        return self.answer[-1].text


def setting(rng: random.Random, *, with_tools: bool) -> Setting:
    """A system message of any effort, dated or not, and perhaps instructions."""
    date = f"202{rng.randint(4, 9)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}" if rng.random() < 0.5 else ""
    instructions = rng.choice(_INSTRUCTIONS) if rng.random() < 0.2 else ""
    chosen = tools.toolbox(rng) if with_tools else ()
    return Setting(rng.choice(("low", "medium", "medium", "high")), date, instructions, chosen)


def sample(skill: str, rng: random.Random, where: Setting, *, held: bool) -> Sample:
    """The next sample of a skill in a setting that is, or is not, held out."""
    while True:
        draft: Draft = GENERATORS[skill](rng, where)
        if is_held_out(f"{skill}: {draft.key}") == held:
            return Sample(skill, where, tuple(draft.history), tuple(draft.answer), draft.key)


def stream(skill: str, seed: int) -> Iterator[Sample]:
    """Held-out samples of a skill without end, each in its own setting; plain skills at times with tools around."""
    rng = random.Random(f"{skill} {seed}")
    while True:
        with_tools = skill in TOOL_SKILLS or rng.random() < 0.1
        yield sample(skill, rng, setting(rng, with_tools=with_tools), held=True)


def held_out(skill: str, n: int, seed: int = 0) -> list[Sample]:
    """The first ``n`` held-out samples of a skill, different from each other in prompt.

    Raises:
        KeyError: no such skill.
    """
    if skill not in GENERATORS:
        raise KeyError(skill)
    found: dict[tuple[Setting, tuple[Message, ...]], Sample] = {}
    for candidate in stream(skill, seed):
        found.setdefault((candidate.setting, candidate.messages), candidate)
        if len(found) == n:
            return list(found.values())
    raise AssertionError("the stream has no end")
