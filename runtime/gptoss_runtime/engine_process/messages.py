"""What the engine's process and its parent say to each other, and how it gets across.

Parent to child: ``Load`` once, then ``Begin``, ``Cancel`` and ``Logits``; the end of the pipe means the end. Child to
parent: ``Loaded`` or ``Raised`` once, then lists of events, as many as there are at a time. Knows nothing of what is
done with them.
"""

from __future__ import annotations

import io
import pickle
import threading
from array import array
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.engine.results import GenerationResult, ModelInfo, TokenLogprobs
from gptoss_runtime.errors import GptOssError

BUFFER = 1 << 20  # the longest prompt's ids fit: read at once, with one turn of the interpreter's lock


@dataclass(frozen=True, slots=True)
class Load:
    """The first message: ``load_engine``'s arguments."""

    path: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Begin:
    """A generation; the prompt was checked."""

    id: int
    prompt: array[int]
    options: GenerationOptions


@dataclass(frozen=True, slots=True)
class Cancel:
    """A generation is wanted no longer; may come after its end."""

    id: int


@dataclass(frozen=True, slots=True)
class Logits:
    """``Engine.logits``."""

    id: int
    tokens: array[int]
    stepwise: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """The child is ready; ``pid`` is its own, which is not the started command's where Windows has a launcher."""

    pid: int
    info: ModelInfo
    slots: int


class Token(NamedTuple):  # there are many, and this pickles in half the time
    """The next token; ``logprobs`` what ``Generation.logprobs`` grew by."""

    id: int
    token: int
    cached_tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """A generation's end; no result: it was cancelled."""

    id: int
    result: GenerationResult | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """The logits asked for."""

    id: int
    rows: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Raised:
    """What a request ended with instead; id 0 is loading."""

    id: int
    error: GptOssError


Request = Begin | Cancel | Logits
Event = Token | Ended | Rows | Raised


def receive(reader: IO[bytes]) -> Any:
    """The next message; blocks.

    Raises:
        EOFError: the other side has closed, or died within a message.
    """
    try:
        return pickle.load(reader)
    except (pickle.UnpicklingError, OSError, ValueError) as error:
        raise EOFError from error


class Outbox:
    """Sends messages in order, from any thread, from finalisers too: whoever is writing also writes what others leave.

    Args:
        writer: the pipe, unbuffered. When it breaks, messages are dropped: the other side's end is told elsewhere.
    """

    def __init__(self, writer: io.FileIO) -> None:
        self._writer = writer
        self._left: deque[bytes] = deque()
        self._writing = threading.Lock()
        self.broken = False

    def put(self, message: object) -> None:
        """Sends, or leaves it to the thread that is sending."""
        self._left.append(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))
        while self._left and self._writing.acquire(blocking=False):
            try:
                self._write(self._left.popleft())
            finally:
                self._writing.release()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left and not self.broken:
                left = left[self._writer.write(left) or 0 :]
        except (OSError, ValueError):  # broken, or closed
            self.broken = True
