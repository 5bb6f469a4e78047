"""Runs many generations on one engine in one thread: round-robin decoding, with chunked prefill in between.

Each step gives every decoding generation one token and then computes one chunk of one prompt, so a long prompt delays
the others by one chunk at most. Results are sent as lists of events. Knows nothing of processes and pipes.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import deque
from collections.abc import Callable

from gptoss_runtime.engine.decoding import LogitsEngine, LogitsGeneration
from gptoss_runtime.engine_process.messages import (
    CancelRequest,
    EndEvent,
    ErrorEvent,
    GenerateRequest,
    LogitsEvent,
    LogitsRequest,
    TokenEvent,
    WorkerEvent,
    WorkerRequest,
)
from gptoss_runtime.errors import BackendError, DeviceLost, GptOssError, ResourceError

_BATCH_SECONDS = 0.01  # tokens produced within this time are sent together, to reduce IPC
_UNBATCHED_TOKENS = 8  # a generation's first tokens are sent at once: a user waits for them, behind harmony's header


class Scheduler:
    """Runs up to ``engine.slots`` generations; further ones are queued, first come, first served.

    Args:
        engine: nothing else may use it.
        send: called with the events to report.
    """

    def __init__(self, engine: LogitsEngine, send: Callable[[list[WorkerEvent]], object]) -> None:
        self._engine = engine
        self._send = send
        self._waiting: dict[int, GenerateRequest] = {}
        self._running: dict[int, LogitsGeneration] = {}
        self._prefilling: deque[int] = deque()  # ids of those running whose prompt is not computed yet
        self._unsent: list[WorkerEvent] = []
        self._sent_at = 0.0
        self.device_lost = False  # only a new process can use the device again

    @property
    def idle(self) -> bool:
        """Whether nothing is running."""
        return not self._running

    def handle(self, request: WorkerRequest) -> None:
        """Handles a request: queues a generation, cancels one, or computes logits at once."""
        match request:
            case GenerateRequest():
                self._waiting[request.id] = request
                self._admit()
            case CancelRequest():
                self._cancel(request.id)
            case LogitsRequest():
                try:
                    logits = self._engine.logits(request.tokens, stepwise=request.stepwise)
                    self._emit(LogitsEvent(request.id, logits))
                except Exception as error:
                    self._emit(self._error_event(request.id, error))
        self.flush()

    def step(self, handle_requests: Callable[[], object]) -> None:
        """Decodes one token of each generation, then computes one chunk of one prompt.

        Args:
            handle_requests: called after each of these, to ``handle`` requests that have arrived.
        """
        for request_id in tuple(self._running):
            if request_id in self._running and request_id not in self._prefilling:
                self._step_generation(request_id)
                handle_requests()
        if self._prefilling:
            self.flush()  # computing a chunk takes long
            self._prefilling.rotate(-1)
            self._step_generation(self._prefilling[-1])
            self.flush()
            handle_requests()
        elif self.idle:
            self.flush()

    def flush(self) -> None:
        """Sends the batched events now."""
        if self._unsent:
            events, self._unsent = self._unsent, []
            self._send(events)
            self._sent_at = time.perf_counter()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._engine.slots:
            request = self._waiting.pop(next(iter(self._waiting)))
            try:
                generation = self._engine.generate(request.prompt, request.options)
            except Exception as error:
                self._emit(self._error_event(request.id, error))
                continue
            assert isinstance(generation, LogitsGeneration)
            self._running[request.id] = generation
            self._prefilling.append(request.id)

    def _step_generation(self, request_id: int) -> None:
        generation = self._running[request_id]
        known = len(generation.logprobs)
        try:
            token = generation.step()
        except StopIteration:
            self._end(request_id, EndEvent(request_id, generation.result))
        except Exception as error:
            self._end(request_id, self._error_event(request_id, error))
        else:
            if token is None:
                return
            if request_id in self._prefilling:
                self._prefilling.remove(request_id)
            self._emit(TokenEvent(request_id, token, generation.cached_tokens, tuple(generation.logprobs[known:])))
            if generation.new_tokens <= _UNBATCHED_TOKENS:
                self.flush()

    def _cancel(self, request_id: int) -> None:
        if self._waiting.pop(request_id, None) is not None:
            self._emit(EndEvent(request_id))
        elif request_id in self._running:
            self._running[request_id].close()
            self._end(request_id, EndEvent(request_id))

    def _end(self, request_id: int, event: WorkerEvent) -> None:
        del self._running[request_id]
        if request_id in self._prefilling:
            self._prefilling.remove(request_id)
        self._emit(event)
        self._admit()

    def _emit(self, event: WorkerEvent) -> None:
        self._unsent.append(event)
        if time.perf_counter() - self._sent_at > _BATCH_SECONDS:
            self.flush()

    def _error_event(self, request_id: int, error: Exception) -> ErrorEvent:
        self.device_lost = self.device_lost or isinstance(error, DeviceLost)
        return ErrorEvent(request_id, to_gptoss_error(error))


def to_gptoss_error(error: Exception) -> GptOssError:
    """Converts any exception to a ``GptOssError``; prints the traceback of an unexpected one to stderr."""
    if isinstance(error, GptOssError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(
            "there is not enough memory", remedy="Close other programs, or load with a smaller context_length."
        )
    traceback.print_exception(error, file=sys.stderr)
    return BackendError(f"{type(error).__name__}: {error}", remedy="This is a bug: please report it.")
