"""The engine in a process of its own, for servers: many clients, a crash that costs one request, memory given back.

``ProcessEngine`` is an ``Engine`` whose work is done by ``worker`` in a child process, up to ``slots`` generations at a
time; others wait. Knows nothing of how tokens are computed; ``child`` knows processes and pipes.
"""

from __future__ import annotations

import threading
import time
import weakref
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.engine.base import Engine, Generation
from gptoss_runtime.engine.options import GenerationOptions, check_bias, check_token_ids
from gptoss_runtime.engine.results import FinishReason, GenerationResult, Timings, Usage
from gptoss_runtime.engine_process.child import Child, Stream
from gptoss_runtime.engine_process.messages import Begin, Ended, Load, Logits, Rows, Token
from gptoss_runtime.errors import BackendError, EngineDied, GptOssError, InvalidRequest, Overloaded

_CRASHES = 3  # within
_WINDOW = 60.0  # seconds: no further start until they have passed
_LONGEST_RETRY = 60.0


class ProcessEngine(Engine):
    """A model in a child process; made by ``load``.

    Generations begin at once, whether they are iterated or not, and advance fairly: a token each in turn, and one piece
    of a prompt between. One that is closed or garbage frees its place. The child ends with ``close``, with this object
    and with this process. When it dies, running generations raise ``EngineDied``; those that wait go to another, which
    they start, as the next request does.
    """

    def __init__(self, load: Load, queue: int) -> None:
        self._load = load
        self.queue = queue
        self._lock = threading.Lock()  # of starting and closing
        self._deaths: deque[float] = deque(maxlen=_CRASHES)
        self.restarts = 0
        self._closed = False
        self._start()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        provider: str = "cpu",
        device: int | str | None = None,
        threads: int | None = None,
        context_length: int | None = None,
        slots: int = 4,
        queue: int = 64,
        verify: bool = False,
    ) -> Self:
        """Starts the child and loads an artifact there.

        Args:
            path: as for ``load_engine``, like those not named here.
            provider: the execution provider.
            device: the adapter.
            threads: intra-op threads.
            context_length: at most this many positions.
            slots: generations that run at once, each with a KV cache of its own; ``engine.slots`` says how many there
                are: on "directml" no more than its memory holds.
            queue: generations that may wait for a slot.
            verify: check every file first.

        Raises:
            GptOssError: as ``load_engine``.
            EngineDied: the child ended while it loaded.
        """
        if not isinstance(queue, int) or isinstance(queue, bool) or queue < 0:
            raise InvalidRequest(f"queue is {queue!r}", remedy="Set queue to a whole number of 0 or more.")
        options = {
            "provider": provider,
            "device": device,
            "threads": threads,
            "context_length": context_length,
            "slots": slots,
            "verify": verify,
        }
        return cls(Load(str(Path(path).absolute()), options), queue)

    @property
    def pid(self) -> int:
        """The child's process id, or the last one's."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether there is a child; if not, the next request starts one, unless the engine is closed."""
        return self._child.alive

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return min(self._child.requests, self.slots)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return max(0, self._child.requests - self.slots)

    def memory(self) -> int:
        """Resident bytes of the child; 0 without one."""
        return self._child.memory()

    def generate(self, token_ids: Iterable[int], options: GenerationOptions | None = None) -> ProcessGeneration:
        """See ``Engine.generate``; from any thread.

        Raises:
            InvalidRequest: the prompt cannot be served. What only the child can find (a grammar) is raised by the
                first ``next``.
            ContextOverflow: the prompt leaves no room for an answer.
            Overloaded: all slots and the queue are taken; nothing was started.
            EngineDied: the child died too often in the last minute to be started again.
            GptOssError: what loading raised, where the child had to be started again.
        """
        info = self.info
        prompt = check_token_ids(token_ids, vocab_size=info.vocab_size, context_length=info.context_length)
        options = options or GenerationOptions()
        check_bias(options, vocab_size=info.vocab_size)
        return ProcessGeneration(self, prompt, options)

    def logits(self, token_ids: Iterable[int], *, stepwise: bool = False) -> NDArray[np.float32]:
        """See ``Engine.logits``; other generations stand still meanwhile."""
        info = self.info
        tokens = check_token_ids(token_ids, vocab_size=info.vocab_size, context_length=info.context_length + 1)
        child, stream = self._open()
        child.send(Logits(stream.id, array("i", tokens), stepwise))
        heard = stream.heard.get()
        if isinstance(heard, GptOssError):
            raise heard
        assert isinstance(heard, Rows)
        return heard.rows

    def close(self) -> None:
        """See ``Engine.close``: the child is gone when this returns; running generations raise ``BackendError``."""
        with self._lock:
            self._closed = True
            self._stop()

    def _open(self) -> tuple[Child, Stream]:
        with self._lock:
            if self._closed:
                raise BackendError("the engine is closed", remedy="Load it again.")
            if not self._child.alive:
                self._restart()
            child = self._child
        stream = child.open(self.slots + self.queue)
        if stream is None:
            raise Overloaded(
                f"{self.slots} requests are running and {self.queue} are waiting",
                remedy="Ask again later, or serve with more slots or a longer queue.",
                retry_after=min(max(1.0, child.pace / self.slots), _LONGEST_RETRY),
            )
        return child, stream

    def _start(self) -> None:
        child = self._child = Child(self._load)
        self._stop = weakref.finalize(self, child.stop)  # also when the interpreter exits
        self.info, self.slots = child.info, child.slots

    def _restart(self) -> None:
        self._stop()
        died = self._child.died
        if died is not None and died not in self._deaths:
            self._deaths.append(died)
        left = self._deaths[0] + _WINDOW - time.monotonic() if len(self._deaths) == _CRASHES else 0.0
        if left > 0:
            raise EngineDied(
                f"the engine's process died {_CRASHES} times within {_WINDOW:.0f} seconds, so it is not started again",
                remedy=f"Ask again in {left:.0f} seconds; a smaller context_length, fewer slots or another provider "
                "may keep it alive.",
            )
        try:
            self._start()
        except EngineDied:
            self._deaths.append(time.monotonic())
            raise
        self.restarts += 1


class ProcessGeneration(Generation):
    """A generation in the child; ``cancel`` and ``close`` return at once and the child follows within a token.

    The result's time to the first token includes waiting for a slot.
    """

    def __init__(self, engine: ProcessEngine, prompt: list[int], options: GenerationOptions) -> None:
        super().__init__()
        self._engine = engine  # which would end the child if nobody held it
        self._prompt = array("i", prompt)
        self._options = options
        self._new = self._cached = 0
        self._first = self._last = 0.0
        self._ended = False
        self._begin()
        self._opened = self._stream.opened

    def _begin(self) -> None:
        child, self._stream = self._engine._open()
        self._abandon = weakref.finalize(self, child.cancel, self._stream.id)
        self._abandon.atexit = False
        child.send(Begin(self._stream.id, self._prompt, self._options))

    def _begin_again(self) -> None:
        """In another process, as the last one died before it came to this."""
        self._abandon.detach()
        try:
            self._begin()
        except GptOssError:
            self._end(self._cut(FinishReason.ERROR))
            raise
        if self._cancel.is_set():  # of the one before, perhaps
            self.cancel()

    def __next__(self) -> int:
        if self._ended:
            raise StopIteration
        heard = None if self._cancel.is_set() else self._stream.heard.get()
        match heard:
            case Token():
                self._last = time.perf_counter()
                self._first = self._first or self._last
                self._new += 1
                self._cached = heard.cached_tokens
                self.logprobs.extend(heard.logprobs)
                return heard.token
            case Ended(result=GenerationResult() as result):
                first = self._first - self._opened
                self._end(replace(result, timings=replace(result.timings, time_to_first_token=first)))
            case EngineDied() if not self._stream.begun:
                self._begin_again()
                return next(self)
            case GptOssError():
                self._end(self._cut(FinishReason.ERROR))
                raise heard
            case _:
                self._end(self._cut(FinishReason.CANCELLED))
        raise StopIteration

    def cancel(self) -> None:
        """See ``Generation.cancel``."""
        super().cancel()
        self._stream.heard.put(None)
        self._abandon()

    def close(self) -> None:
        """See ``Generation.close``."""
        self.cancel()
        if not self._ended:
            self._end(self._cut(FinishReason.CANCELLED))

    def _cut(self, reason: FinishReason) -> GenerationResult:
        """The result of a generation that does not end by itself, by what was heard of it."""
        usage = Usage(prompt_tokens=len(self._prompt), new_tokens=self._new, cached_tokens=self._cached)
        timings = Timings.measured(usage, started=self._opened, first=self._first, last=self._last)
        return GenerationResult(reason, None, usage, timings)

    def _end(self, result: GenerationResult) -> None:
        self._ended = True
        self._result = result
        self._abandon.detach()
