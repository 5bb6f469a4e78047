"""The messages between a ``ProcessEngine`` and its child process, and how they cross the pipes.

Parent to child: one ``LoadRequest``, then ``WorkerRequest``s; closing the pipe ends the child. Child to parent: one
``LoadedEvent`` or ``ErrorEvent``, then lists of ``WorkerEvent``s. Knows nothing of how a message is handled.
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

PIPE_BUFFER = 1 << 20  # bytes: the longest prompt fits and is read at once, taking the interpreter's lock once

LOAD_ID = 0  # the request id of loading; generations and logits count from 1


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """The first message: the arguments of ``load_engine``."""

    path: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Start a generation. The parent has already checked the prompt."""

    id: int
    prompt: array[int]
    options: GenerationOptions


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Cancel a generation; ignored if it has already ended."""

    id: int


@dataclass(frozen=True, slots=True)
class LogitsRequest:
    """Call ``Engine.logits``."""

    id: int
    tokens: array[int]
    stepwise: bool


@dataclass(frozen=True, slots=True)
class LoadedEvent:
    """The model is loaded.

    ``pid`` is the worker's own process id. On Windows it differs from the started command's if Python is a launcher.
    """

    pid: int
    info: ModelInfo
    slots: int


class TokenEvent(NamedTuple):  # the most frequent message: a tuple pickles in half a dataclass's time
    """One generated token, and the entries it added to ``Generation.logprobs``."""

    id: int
    token: int
    cached_tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class EndEvent:
    """A generation has ended; ``result`` is None if it was cancelled."""

    id: int
    result: GenerationResult | None = None


@dataclass(frozen=True, slots=True)
class LogitsEvent:
    """The answer to a ``LogitsRequest``: float32 ``[tokens, vocab]``."""

    id: int
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """A request failed; id ``LOAD_ID`` means loading failed."""

    id: int
    error: GptOssError


WorkerRequest = GenerateRequest | CancelRequest | LogitsRequest
WorkerEvent = TokenEvent | EndEvent | LogitsEvent | ErrorEvent


def read_message(reader: IO[bytes]) -> Any:
    """Reads one message; blocks until it is complete.

    Raises:
        EOFError: the other process closed the pipe, or died while writing.
    """
    try:
        return pickle.load(reader)
    except (pickle.UnpicklingError, OSError, ValueError) as error:
        raise EOFError from error


class MessageWriter:
    """Writes messages to a pipe in order, from any thread and from finalisers.

    ``send`` never waits for another thread: the thread that is writing also writes what others queue meanwhile.

    Args:
        pipe: unbuffered. Once it breaks, ``broken`` is True and messages are dropped; the reader of the other pipe
            reports that the process ended.
    """

    def __init__(self, pipe: io.FileIO) -> None:
        self._pipe = pipe
        self._queue: deque[bytes] = deque()
        self._writing = threading.Lock()
        self.broken = False

    def send(self, message: object) -> None:
        """Writes a message, or queues it for the thread that is writing."""
        self._queue.append(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))
        while self._queue and self._writing.acquire(blocking=False):
            try:
                self._write(self._queue.popleft())
            finally:
                self._writing.release()

    def _write(self, data: bytes) -> None:
        remaining = memoryview(data)
        try:
            while remaining and not self.broken:
                remaining = remaining[self._pipe.write(remaining) or 0 :]
        except (OSError, ValueError):  # the pipe is broken or closed
            self.broken = True
