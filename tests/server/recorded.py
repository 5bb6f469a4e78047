"""A real server whose engine replays scripted answers, for clients whose tasks are too hard for nano.

Everything but the choice of tokens is real: rendering, grammars, parsing, HTTP. Knows scripts; knows no clients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_runtime.artifact.folder import TOKENIZER
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine.scripted import ScriptedEngine
from gptoss_runtime.harmony_tokens import FORMAT_TOKENS
from gptoss_runtime.server.model_host import ModelHost
from gptoss_runtime.server.served_models import ServedModels
from gptoss_runtime.server.settings import Settings
from tests.server.running import MODEL, serving

_CONTEXT = 32768  # agents send prompts of many thousand tokens


def ids_of(harmony: Harmony, text: str) -> list[int]:
    """The ids of an answer whose control tokens are spelled out."""
    for name, token in FORMAT_TOKENS.items():
        before, found, after = text.partition(name)
        if found:
            return [*ids_of(harmony, before), token, *ids_of(harmony, after)]
    return harmony.encode(text)


def thought(text: str) -> str:
    """Reasoning at the start of an answer."""
    return f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant"


def call(name: str, arguments: str) -> str:
    """A function call at the end of an answer."""
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"


def final(text: str) -> str:
    """The final text at the end of an answer."""
    return f"<|channel|>final<|message|>{text}<|return|>"


@dataclass(frozen=True, slots=True)
class Recording:
    """A running server with a scripted engine.

    Args:
        url: the server's URL.
        engine: its engine.
        harmony: its chat format.
    """

    url: str
    engine: ScriptedEngine
    harmony: Harmony

    @property
    def prompts(self) -> list[str]:
        """The prompts so far as text, without the server's warm-up."""
        return [self.harmony.decode(ids) for ids in self.engine.prompts[1:]]


@contextlib.contextmanager
def serve_recorded(
    artifact: Path,
    vocabulary: Path,
    answers: Sequence[str],
    *,
    tell_date: bool = False,
    player: Callable[..., ScriptedEngine] = ScriptedEngine,
) -> Iterator[Recording]:
    """Runs a server under nano's name that gives these answers, one after the other.

    Args:
        artifact: the artifact whose tokenizer is used.
        vocabulary: the cache folder for harmony's vocabulary.
        answers: the answers, composed with ``thought``, ``call`` and ``final``.
        tell_date: see ``Settings``.
        player: the engine's class; its generation 0 is the server's warm-up.
    """
    harmony = Harmony.load(artifact / TOKENIZER, cache=vocabulary)
    scripts = [[], *(ids_of(harmony, answer) for answer in answers)]  # the first generation is the warm-up
    engine = player(scripts, context_length=_CONTEXT, tokenizer=artifact / TOKENIZER)
    host = ModelHost(ServedModels({MODEL: artifact}), lambda _: engine, cache=vocabulary)
    with serving(Settings(port=0, tell_date=tell_date), host) as running:
        yield Recording(running.url, engine, harmony)
