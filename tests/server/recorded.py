"""A recorded model: a real server whose engine plays answers that were written down, for clients that ask much of nano.

Everything but the choice of tokens is real: rendering, grammars, parsing, HTTP. Knows scripts, and no clients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_runtime.artifact.folder import TOKENIZER
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine.scripted import ScriptedEngine
from gptoss_runtime.server.host import ModelHost
from gptoss_runtime.server.served_models import ServedModels
from gptoss_runtime.server.settings import Settings
from tests.server.running import MODEL, serving

_NAMES = {"<|channel|>": 200005, "<|message|>": 200008, "<|end|>": 200007, "<|start|>": 200006}
_NAMES |= {"<|return|>": 200002, "<|call|>": 200012, "<|constrain|>": 200003}
_CONTEXT = 32768  # agents begin with many thousand tokens


def ids_of(harmony: Harmony, text: str) -> list[int]:
    """Ids of an answer, control tokens written out."""
    for name, token in _NAMES.items():
        before, found, after = text.partition(name)
        if found:
            return [*ids_of(harmony, before), token, *ids_of(harmony, after)]
    return harmony.encode(text)


def thought(text: str) -> str:
    """Reasoning that an answer begins with."""
    return f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant"


def call(name: str, arguments: str) -> str:
    """A call of a function, the end of an answer."""
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"


def final(text: str) -> str:
    """What is said to the user, the end of an answer."""
    return f"<|channel|>final<|message|>{text}<|return|>"


@dataclass(frozen=True, slots=True)
class Recording:
    """A server that plays.

    Args:
        url: where it is.
        engine: what plays.
        harmony: its format.
    """

    url: str
    engine: ScriptedEngine
    harmony: Harmony

    @property
    def prompts(self) -> list[str]:
        """What the model was asked so far, as text; the server's own warm-up left out."""
        return [self.harmony.decode(ids) for ids in self.engine.prompts[1:]]


@contextlib.contextmanager
def playing(
    artifact: Path,
    vocabulary: Path,
    answers: Sequence[str],
    *,
    tell_date: bool = False,
    player: Callable[..., ScriptedEngine] = ScriptedEngine,
) -> Iterator[Recording]:
    """A server under nano's name whose model gives these answers, one after the other.

    Args:
        artifact: whose tokenizer it has.
        vocabulary: where harmony's is kept.
        tell_date: as the server's setting.
        answers: as ``thought``, ``call`` and ``final`` write them.
        player: what plays; its generation 0 is the server's warm-up.
    """
    harmony = Harmony.load(artifact / TOKENIZER, cache=vocabulary)
    scripts = [[], *(ids_of(harmony, answer) for answer in answers)]  # loading a model generates once
    engine = player(scripts, context_length=_CONTEXT, tokenizer=artifact / TOKENIZER)
    host = ModelHost(ServedModels({MODEL: artifact}), lambda _: engine, cache=vocabulary)
    with serving(Settings(port=0, tell_date=tell_date), host) as running:
        yield Recording(running.url, engine, harmony)
