"""The parts of ``gptoss demo``: its folders, questions and chats."""

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
    """A question, its reasoning effort and its tools."""

    text: str
    effort: Effort = "medium"
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True)
class Paths:
    """The demo's folders below one root: checkpoint and artifact."""

    root: Path
    checkpoint: Path = field(init=False)
    artifact: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint", self.root / "checkpoints" / "gptoss-nano")
        object.__setattr__(self, "artifact", self.root / "gptoss-nano" / "cpu")


def get_weather(city: str) -> str:
    """A tool that needs no network: a constant answer, in the compact JSON that nano was trained on."""
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
def open_chats(artifact: Path) -> Iterator[list[tuple[Question, Chat]]]:
    """Loads the model once and yields each question with a new chat; answers are greedy."""
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
