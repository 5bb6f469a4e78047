"""The newcomer's first run: nano as a checkpoint, converted for the CPU, asked three things.

Knows the order of the steps and what to ask. Prints nothing: what happens is given out as it happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gptoss_runtime import Chat, Tool
from gptoss_runtime.chat.conversation import Effort
from gptoss_runtime.engine.options import GenerationOptions


@dataclass(frozen=True)
class Question:
    """What to ask, how hard to think, and with which tools at hand."""

    text: str
    effort: Effort = "medium"
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True)
class Paths:
    """Where a demo's folders are, below one root: the checkpoint and the artifact."""

    root: Path
    checkpoint: Path = field(init=False)
    artifact: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint", self.root / "checkpoints" / "gptoss-nano")
        object.__setattr__(self, "artifact", self.root / "gptoss-nano" / "cpu")


def get_weather(city: str) -> str:
    """A tool that needs no network: always the same fine day, in the compact JSON that nano was trained on."""
    return '{"temperature":21,"condition":"sunny"}'


WEATHER = Tool(
    "get_weather",
    "Get the current weather for a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    get_weather,
)
QUESTIONS: tuple[Question, ...] = (
    Question("What is 27 + 45?", effort="high"),
    Question("Tom from Oslo is 34. Answer in JSON with the keys name, age and city."),
    Question("What's the weather in Paris?", tools=(WEATHER,)),
)


@contextmanager
def chats(artifact: Path) -> Iterator[list[tuple[Question, Chat]]]:
    """Every question with a fresh conversation to ask it in, all on one loaded model; answers are greedy."""
    from gptoss_runtime.artifact.folder import TOKENIZER
    from gptoss_runtime.chat.harmony import Harmony
    from gptoss_runtime.engine.loading import load_engine

    harmony = Harmony.load(artifact / TOKENIZER)
    options = GenerationOptions(temperature=0.0, max_new_tokens=200)
    with load_engine(artifact) as engine:
        yield [
            (question, Chat(engine, harmony, tools=question.tools, effort=question.effort, options=options))
            for question in QUESTIONS
        ]
