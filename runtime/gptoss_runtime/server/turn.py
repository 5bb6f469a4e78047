"""One request's generation: rendered and generated in a thread of its own, its events handed to the event loop.

The thread runs at the engine's pace and never waits for the client, so a slow reader holds no slot; the context length
bounds how many events can pile up. ``cancel`` ends the turn within one token. Knows engines and threads; knows nothing
of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Protocol, cast

from gptoss_runtime.engine.base import Generation
from gptoss_runtime.engine.options import MAX_SEED, GenerationOptions
from gptoss_runtime.errors import NumericalError
from gptoss_runtime.server.model_host import ModelLease
from gptoss_runtime.server.prompt import prepare_generation
from gptoss_runtime.server.turn_events import ChoiceEnd, TurnEvent, TurnEventParser
from gptoss_runtime.server.turn_request import TurnRequest

log = logging.getLogger("gptoss.server")
_START_SECONDS = 1.0  # an error within them becomes the response's status; a later one becomes an event of the stream

ChoiceEvent = tuple[int, TurnEvent]  # the choice's index, and its event


class TurnObserver(Protocol):
    """Is told how turns progress, from their threads: the metrics."""

    def turn_started(self) -> None:
        """A turn waits for its first token."""

    def first_token(self, seconds: float) -> None:
        """The first token came, so many seconds after the start."""

    def turn_ended(self, ends: list[ChoiceEnd], *, had_token: bool) -> None:
        """The turn ended; ``ends`` are those of the choices that were generated."""


class Turn:
    """A turn being generated: ``start`` it, then iterate over its ``events``.

    Args:
        lease: the model; released when the thread ends.
        request: what to generate.
        observer: is told how the turn progresses.

    ``prompt_tokens`` is known once there are events. ``failed`` is the choice in which the engine failed, and its end:
    it is not among the ``events``, so that an error before any text can still become the response's status.
    """

    def __init__(self, lease: ModelLease, request: TurnRequest, observer: TurnObserver) -> None:
        self.model = lease.name
        self.harmony = lease.harmony
        self.prompt_tokens = 0
        self.failed: tuple[int, ChoiceEnd] | None = None
        self._lease = lease
        self._request = request
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._queue: deque[ChoiceEvent | BaseException | None] = deque()  # filled by the thread; an error or None last
        self._ready = asyncio.Event()  # the queue is not empty
        self._wake_pending = False  # the event loop is already scheduled to look at the queue
        self._cancelled = threading.Event()
        self._generation: Generation | None = None
        self._ends: list[ChoiceEnd] = []
        self._last_end: ChoiceEvent | None = None  # not queued yet
        self._had_token = False

    async def start(self) -> None:
        """Starts to generate; returns when the first event is there, or after a second without one.

        Raises:
            GptOssError: the request cannot be rendered or the engine refuses it; nothing is left running.
        """
        threading.Thread(target=self._run, name="gptoss-turn", daemon=True).start()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_START_SECONDS):
                    await self._ready.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._queue and isinstance(error := self._queue[0], BaseException):
            raise error

    def cancel(self) -> None:
        """Ends the turn within one token; thread-safe."""
        self._cancelled.set()
        generation = self._generation
        if generation is not None:
            generation.cancel()

    async def events(self) -> AsyncGenerator[list[ChoiceEvent]]:
        """Yields the events of all choices in order, as many as there are at a time; closing it cancels the turn.

        Raises:
            GptOssError: the engine failed.
        """
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                batch = []
                while self._queue and isinstance(self._queue[0], tuple):
                    batch.append(cast(ChoiceEvent, self._queue.popleft()))
                if batch:
                    yield batch
                if self._queue and not isinstance(end := self._queue[0], tuple):
                    break
            if end is not None:
                raise end
        finally:
            self.cancel()

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            self._generate_choices()
        except BaseException as error:
            if isinstance(error, NumericalError):
                log.error("%s: %s", self.model, error.message)
            end = error
        try:
            self._observer.turn_ended(self._ends, had_token=self._had_token)
        finally:
            self._lease.release()  # before the client can know of the end: it may unload the model at once
            self._post_last_end()
            self._post(end)

    def _generate_choices(self) -> None:
        started = time.perf_counter()
        self._observer.turn_started()
        ids, options = prepare_generation(self._lease.engine, self._lease.harmony, self._request)
        self.prompt_tokens = len(ids)
        for choice in range(self._request.choices):
            if choice and self._cancelled.is_set():
                break
            self._generate(choice, ids, options, started)

    def _generate(self, choice: int, ids: list[int], options: GenerationOptions, started: float) -> None:
        self._post_last_end()
        if choice and options.seed is not None:
            options = replace(options, seed=(options.seed + choice) & MAX_SEED)
        tools = [tool.name for tool in self._request.tools]
        parser = TurnEventParser(self._lease.harmony.parser(), self._request.stop_strings, tools)
        with self._lease.engine.generate(ids, options) as generation:
            self._generation = generation
            if self._cancelled.is_set():  # set before `cancel` could see the generation
                generation.cancel()
            for event in parser.stream(generation):
                if not self._had_token and not isinstance(event, ChoiceEnd):
                    self._had_token = True
                    self._observer.first_token(time.perf_counter() - started)
                if not isinstance(event, ChoiceEnd):
                    self._post((choice, event))
                    continue
                self._ends.append(event)
                if event.reason == "error":
                    self.failed = (choice, event)
                else:
                    self._last_end = (choice, event)

    def _post_last_end(self) -> None:
        """Queues the end of the choice before: the last one's ends some answers, so the model is released first."""
        last, self._last_end = self._last_end, None
        if last is not None:
            self._post(last)

    def _post(self, item: ChoiceEvent | BaseException | None) -> None:
        """Queues an item; the event loop is woken once for all items that come before it looks."""
        self._queue.append(item)
        if not self._wake_pending:
            self._wake_pending = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the waiting request with it
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._wake_pending = False  # before the queue is read: an item posted from now on schedules another wake-up
        self._ready.set()
