"""Many generations on one engine, in one thread: a token for each in turn, and one piece of a prompt between.

A long prompt thus holds up the others' tokens by one piece at most. What happens is told in lists of events. Knows
generations that come in turns; knows nothing of processes and pipes.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections import deque
from collections.abc import Callable

from gptoss_runtime.engine.decoding import LogitsEngine, LogitsGeneration
from gptoss_runtime.engine_process.messages import Begin, Cancel, Ended, Event, Logits, Raised, Request, Rows, Token
from gptoss_runtime.errors import BackendError, DeviceLost, GptOssError, ResourceError

_LINGER = 0.01  # seconds between two sendings; tokens that come faster travel together, which spares both sides
_EARLY = 8  # but for a generation's first: somebody waits for the first word, and harmony's header comes before it


class Scheduler:
    """Runs up to ``engine.slots`` generations; others wait, first come, first served.

    Args:
        engine: whose generations come in turns; used by this alone.
        send: takes the events of a moment.
    """

    def __init__(self, engine: LogitsEngine, send: Callable[[list[Event]], object]) -> None:
        self._engine = engine
        self._send = send
        self._waiting: dict[int, Begin] = {}
        self._reading: deque[int] = deque()  # of those running, the ones in their prompt
        self._running: dict[int, LogitsGeneration] = {}
        self._events: list[Event] = []
        self._sent = 0.0  # when
        self.lost = False  # the device is gone: only a new process can go on

    @property
    def idle(self) -> bool:
        """Whether nothing is running."""
        return not self._running

    def handle(self, request: Request) -> None:
        """Takes a request; generations begin in ``turns``, logits are computed at once."""
        match request:
            case Begin():
                self._waiting[request.id] = request
                self._admit()
            case Cancel():
                self._cancel(request.id)
            case Logits():
                try:
                    rows = self._engine.logits(request.tokens, stepwise=request.stepwise)
                    self._tell(Rows(request.id, rows))
                except Exception as error:
                    self._tell(self._raised(request.id, error))
        self.flush()

    def turns(self, between: Callable[[], object]) -> None:
        """A token of each generation, then a piece of one prompt; requests are handled in ``between``."""
        for identity in tuple(self._running):
            if identity in self._running and identity not in self._reading:
                self._step(identity)
                between()
        if self._reading:
            self.flush()  # a piece takes long
            self._reading.rotate(-1)
            self._step(self._reading[-1])
            self.flush()
            between()
        elif self.idle:
            self.flush()

    def flush(self) -> None:
        """Sends what has been held back."""
        if self._events:
            events, self._events = self._events, []
            self._send(events)
            self._sent = time.perf_counter()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._engine.slots:
            begin = self._waiting.pop(next(iter(self._waiting)))
            try:
                generation = self._engine.generate(begin.prompt, begin.options)
            except Exception as error:
                self._tell(self._raised(begin.id, error))
                continue
            assert isinstance(generation, LogitsGeneration)
            self._running[begin.id] = generation
            self._reading.append(begin.id)

    def _step(self, identity: int) -> None:
        generation = self._running[identity]
        before = len(generation.logprobs)
        try:
            token = generation.turn()
        except StopIteration:
            self._end(identity, Ended(identity, generation.result))
        except Exception as error:
            self._end(identity, self._raised(identity, error))
        else:
            if token is None:
                return
            if identity in self._reading:
                self._reading.remove(identity)
            self._tell(Token(identity, token, generation.cached_tokens, tuple(generation.logprobs[before:])))
            if generation.new_tokens <= _EARLY:
                self.flush()

    def _cancel(self, identity: int) -> None:
        if self._waiting.pop(identity, None) is not None:
            self._tell(Ended(identity))
        elif identity in self._running:
            self._running[identity].close()
            self._end(identity, Ended(identity))

    def _end(self, identity: int, event: Event) -> None:
        del self._running[identity]
        if identity in self._reading:
            self._reading.remove(identity)
        self._tell(event)
        self._admit()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        if time.perf_counter() - self._sent > _LINGER:
            self.flush()

    def _raised(self, identity: int, error: Exception) -> Raised:
        self.lost = self.lost or isinstance(error, DeviceLost)
        return Raised(identity, as_ours(error))


def as_ours(error: Exception) -> GptOssError:
    """An error of this project for any: what was not foreseen goes to stderr with its traceback."""
    if isinstance(error, GptOssError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(
            "there is not enough memory", remedy="Close other programs, or load with a smaller context_length."
        )
    traceback.print_exception(error, file=sys.stderr)
    return BackendError(f"{type(error).__name__}: {error}", remedy="This should not happen: please report it.")
