"""``ProcessEngine``: an engine in a child process, for servers.

Many clients share it, a crash costs only the requests that were running, and closing it returns all memory. The work is
done by ``worker``; ``child`` handles processes and pipes. Knows nothing of how tokens are computed.
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
from gptoss_runtime.engine_process.child import ChildProcess, PendingRequest
from gptoss_runtime.engine_process.messages import (
    EndEvent,
    GenerateRequest,
    LoadRequest,
    LogitsEvent,
    LogitsRequest,
    TokenEvent,
)
from gptoss_runtime.errors import BackendError, EngineDied, GptOssError, InvalidRequest, Overloaded

# After this many crashes within this many seconds, no child is started until the oldest crash is that long ago.
_MAX_CRASHES = 3
_CRASH_WINDOW = 60.0
_MAX_RETRY_AFTER = 60.0  # seconds


class ProcessEngine(Engine):
    """A model in a child process; create it with ``load``.

    Up to ``slots`` generations run at once, whether they are iterated or not: each decodes a token in turn, with one
    prompt chunk in between. Others are queued. Closing or garbage-collecting a generation frees its slot. The child
    ends when this object is closed or collected and when this process ends.

    If the child dies, running generations raise ``EngineDied``. Queued ones are resubmitted to a new child, which
    they or the next request start.
    """

    def __init__(self, load: LoadRequest, queue: int) -> None:
        self._load = load
        self.queue = queue
        self._lock = threading.Lock()  # held while a child is started or stopped
        self._crashes: deque[float] = deque(maxlen=_MAX_CRASHES)  # time.monotonic() of the latest
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
        """Starts a child process and loads an artifact in it.

        Args:
            path: the artifact folder; this and the options below without details are as for ``load_engine``.
            provider: the execution provider.
            device: the graphics adapter.
            threads: intra-op threads.
            context_length: the maximum context length.
            slots: generations that run at once, each with its own KV cache. ``engine.slots`` is the actual number: on
                "directml" at most what the adapter's memory holds.
            queue: generations that may wait for a slot.
            verify: check every file's sha256 first.

        Raises:
            GptOssError: as ``load_engine``.
            EngineDied: the child ended while loading.
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
        return cls(LoadRequest(str(Path(path).absolute()), options), queue)

    @property
    def pid(self) -> int:
        """Process id of the current or last child."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether a child is running; if not, the next request starts one unless the engine is closed."""
        return self._child.alive

    @property
    def running(self) -> int:
        """Number of requests that have a slot."""
        return min(self._child.requests, self.slots)

    @property
    def waiting(self) -> int:
        """Number of requests queued for a slot."""
        return max(0, self._child.requests - self.slots)

    def memory(self) -> int:
        """Resident bytes of the child; 0 if there is none."""
        return self._child.memory()

    def generate(self, token_ids: Iterable[int], options: GenerationOptions | None = None) -> ProcessGeneration:
        """Starts a generation; thread-safe. See ``Engine.generate``.

        Raises:
            InvalidRequest: the prompt or an option is invalid. Errors that only the child detects, such as a bad
                grammar, are raised by the first ``next``.
            ContextOverflow: the prompt leaves no room for an answer.
            Overloaded: all slots and the queue are full; nothing was started.
            EngineDied: the child crashed too often within the last minute and is not restarted.
            GptOssError: a child had to be started, and loading failed.
        """
        info = self.info
        prompt = check_token_ids(token_ids, vocab_size=info.vocab_size, context_length=info.context_length)
        options = options or GenerationOptions()
        check_bias(options, vocab_size=info.vocab_size)
        return ProcessGeneration(self, prompt, options)

    def logits(self, token_ids: Iterable[int], *, stepwise: bool = False) -> NDArray[np.float32]:
        """See ``Engine.logits``; pauses the running generations."""
        info = self.info
        tokens = check_token_ids(token_ids, vocab_size=info.vocab_size, context_length=info.context_length + 1)
        child, request = self._open_request()
        child.send(LogitsRequest(request.id, array("i", tokens), stepwise))
        reply = request.replies.get()
        if isinstance(reply, GptOssError):
            raise reply
        assert isinstance(reply, LogitsEvent)
        return reply.logits

    def close(self) -> None:
        """Ends the child and waits for it; running generations raise ``BackendError``. See ``Engine.close``."""
        with self._lock:
            self._closed = True
            self._stop()

    def _open_request(self) -> tuple[ChildProcess, PendingRequest]:
        """Registers a request with the child, which is started if it is not alive."""
        with self._lock:
            if self._closed:
                raise BackendError("the engine is closed", remedy="Load it again.")
            if not self._child.alive:
                self._restart()
            child = self._child
        request = child.open_request(self.slots + self.queue)
        if request is None:
            raise Overloaded(
                f"{self.slots} requests are running and {self.queue} are waiting",
                remedy="Retry later, or load the engine with more slots or a longer queue.",
                retry_after=min(max(1.0, child.mean_duration / self.slots), _MAX_RETRY_AFTER),
            )
        return child, request

    def _start(self) -> None:
        child = self._child = ChildProcess(self._load)
        self._stop = weakref.finalize(self, child.stop)  # also runs when the interpreter exits
        self.info, self.slots = child.info, child.slots

    def _restart(self) -> None:
        self._stop()
        died_at = self._child.died_at
        if died_at is not None and died_at not in self._crashes:
            self._crashes.append(died_at)
        wait = self._crashes[0] + _CRASH_WINDOW - time.monotonic() if len(self._crashes) == _MAX_CRASHES else 0.0
        if wait > 0:
            raise EngineDied(
                f"the engine's process died {_MAX_CRASHES} times within {_CRASH_WINDOW:.0f} seconds and is not "
                "restarted for now",
                remedy=f"Retry in {wait:.0f} seconds. If it keeps crashing, try a smaller context_length, fewer slots "
                "or another provider.",
            )
        try:
            self._start()
        except EngineDied:
            self._crashes.append(time.monotonic())
            raise
        self.restarts += 1


class ProcessGeneration(Generation):
    """A generation in the child process.

    ``cancel`` and ``close`` return at once; the child stops within one token. The time to the first token includes
    the time in the queue.
    """

    def __init__(self, engine: ProcessEngine, prompt: list[int], options: GenerationOptions) -> None:
        super().__init__()
        self._engine = engine  # keeps the engine, and so the child, alive
        self._prompt = array("i", prompt)
        self._options = options
        self._new_tokens = self._cached_tokens = 0
        self._first_token_at = self._last_token_at = 0.0
        self._ended = False
        self._submit()
        self._submitted_at = self._request.submitted_at

    def _submit(self) -> None:
        child, self._request = self._engine._open_request()
        self._cancel_request = weakref.finalize(self, child.cancel, self._request.id)
        self._cancel_request.atexit = False
        child.send(GenerateRequest(self._request.id, self._prompt, self._options))

    def _resubmit(self) -> None:
        """Submits the request to a new child, because the old one died before it started the request."""
        self._cancel_request.detach()
        try:
            self._submit()
        except GptOssError:
            self._end(self._interrupted_result(FinishReason.ERROR))
            raise
        if self._cancel.is_set():  # cancelled in the meantime, which reached the old child
            self.cancel()

    def __next__(self) -> int:
        if self._ended:
            raise StopIteration
        reply = None if self._cancel.is_set() else self._request.replies.get()
        match reply:
            case TokenEvent():
                self._last_token_at = time.perf_counter()
                self._first_token_at = self._first_token_at or self._last_token_at
                self._new_tokens += 1
                self._cached_tokens = reply.cached_tokens
                self.logprobs.extend(reply.logprobs)
                return reply.token
            case EndEvent(result=GenerationResult() as result):
                elapsed = self._first_token_at - self._submitted_at
                self._end(replace(result, timings=replace(result.timings, time_to_first_token=elapsed)))
            case EngineDied() if not self._request.started:
                self._resubmit()
                return next(self)
            case GptOssError():
                self._end(self._interrupted_result(FinishReason.ERROR))
                raise reply
            case _:
                self._end(self._interrupted_result(FinishReason.CANCELLED))
        raise StopIteration

    def cancel(self) -> None:
        """See ``Generation.cancel``."""
        super().cancel()
        self._request.replies.put(None)
        self._cancel_request()

    def close(self) -> None:
        """See ``Generation.close``."""
        self.cancel()
        if not self._ended:
            self._end(self._interrupted_result(FinishReason.CANCELLED))

    def _interrupted_result(self, reason: FinishReason) -> GenerationResult:
        """The result of a generation that was cancelled or failed, from what has been received."""
        usage = Usage(prompt_tokens=len(self._prompt), new_tokens=self._new_tokens, cached_tokens=self._cached_tokens)
        timings = Timings.from_timestamps(
            usage, started=self._submitted_at, first=self._first_token_at, last=self._last_token_at
        )
        return GenerationResult(reason, None, usage, timings)

    def _end(self, result: GenerationResult) -> None:
        self._ended = True
        self._result = result
        self._cancel_request.detach()
