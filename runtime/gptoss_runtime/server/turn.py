"""One request's generation: rendered and generated in a thread of its own, its events given to the event loop.

The thread runs to its end at the engine's pace and hands events over without waiting, so that a slow reader holds no
slot; what it has not read yet is bounded by the context. ``cancel`` ends it within a token. Knows conversations,
engines and threads; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, cast

from gptoss_runtime.chat.conversation import Effort, Message, ResponseFormat, Tool
from gptoss_runtime.chat.turn_grammar import turn_grammar
from gptoss_runtime.engine.base import Engine, Generation
from gptoss_runtime.engine.options import MAX_SEED, GenerationOptions
from gptoss_runtime.errors import ContextOverflow, NumericalError
from gptoss_runtime.harmony_tokens import STOP_TOKENS
from gptoss_runtime.server.reading import End, Reader, TurnEvent

if TYPE_CHECKING:
    from gptoss_runtime.chat.harmony import Harmony

log = logging.getLogger("gptoss.server")
_GRACE = 1.0  # seconds in which an error still gets a status of its own; then the stream begins, and carries it
_USUAL = 4  # characters a token: more text than this is counted before it is rendered, which cannot be interrupted
_SLICE = 2**14  # characters counted at a time, others' threads between


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What is asked of the model, whichever API it came by.

    Args:
        messages: the conversation.
        tools: told to the model.
        tool_choice: whether it may or must call one.
        allowed: names of those it may call; ``None``: all.
        response_format: what the answer has to be.
        effort: how long to reason.
        options: how to choose tokens.
        stops: strings that end the answer.
        choices: how many answers, made one after the other.
        drop_oldest: leave out the oldest turns of a conversation that does not fit, instead of refusing it.
        date: told to the model as today's.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] = "none"
    allowed: tuple[str, ...] | None = None
    response_format: ResponseFormat | None = None
    effort: Effort = "medium"
    options: GenerationOptions = field(default_factory=GenerationOptions)
    stops: tuple[str, ...] = ()
    choices: int = 1
    drop_oldest: bool = False
    date: datetime.date | None = None


class Lease(Protocol):
    """A loaded model in use; it stays loaded until ``release``."""

    name: str
    engine: Engine
    harmony: Harmony

    def release(self) -> None:
        """Gives it back; thread-safe, and may be called again."""


class Watch(Protocol):
    """Who is told how turns go: the metrics."""

    def turn_began(self) -> None:
        """A turn waits for its first token."""

    def turn_spoke(self, seconds: float) -> None:
        """Its first token came."""

    def turn_ended(self, ends: list[End], *, spoke: bool) -> None:
        """It is over; ``ends`` are those of the choices that were finished."""


Happening = tuple[int, TurnEvent]  # the choice, and what happened to it


class Turn:
    """A generation under way; ``start`` it, then iterate over its ``events``.

    Args:
        lease: the model; released when the thread has ended.
        request: what to generate.
        watch: told how it goes.
    """

    def __init__(self, lease: Lease, request: TurnRequest, watch: Watch) -> None:
        self.model = lease.name
        self.harmony = lease.harmony
        self.prompt_tokens = 0
        self.failed: tuple[int, End] | None = None  # the choice in which the engine failed, before `events` raises
        self._lease = lease
        self._request = request
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._posted: deque[Happening | BaseException | None] = deque()  # by the thread; an error and None are the end
        self._ready = asyncio.Event()  # something was posted
        self._told = False  # the event loop is about to hear of it
        self._cancelled = threading.Event()
        self._generation: Generation | None = None
        self._ends: list[End] = []
        self._spoke = False

    async def start(self) -> None:
        """Begins; returns when the first event is there, or after a while without one.

        Raises:
            GptOssError: it cannot be rendered or the engine refuses it; nothing goes on.
        """
        threading.Thread(target=self._run, name="gptoss-turn", daemon=True).start()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE):
                    await self._ready.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._posted and isinstance(error := self._posted[0], BaseException):
            raise error

    def cancel(self) -> None:
        """Ends it within a token; thread-safe."""
        self._cancelled.set()
        generation = self._generation
        if generation is not None:
            generation.cancel()

    async def events(self) -> AsyncGenerator[list[Happening]]:
        """The events of all choices, in order, as many as there are at a time; leaving early cancels the turn.

        Raises:
            GptOssError: the engine failed.
        """
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                batch = []
                while self._posted and isinstance(self._posted[0], tuple):
                    batch.append(cast(Happening, self._posted.popleft()))
                if batch:
                    yield batch
                if self._posted and not isinstance(end := self._posted[0], tuple):
                    break
            if end is not None:
                raise end
        finally:
            self.cancel()

    def _run(self) -> None:
        began = time.perf_counter()
        self._watch.turn_began()
        try:
            ids, options = prepare(self._lease.engine, self._lease.harmony, self._request)
            self.prompt_tokens = len(ids)
            for choice in range(self._request.choices):
                if choice and self._cancelled.is_set():
                    break
                self._generate(choice, ids, options, began)
            self._post(None)
        except BaseException as error:
            if isinstance(error, NumericalError):
                log.error("%s: %s", self.model, error.message)
            self._post(error)
        finally:
            self._watch.turn_ended(self._ends, spoke=self._spoke)
            self._lease.release()

    def _generate(self, choice: int, ids: list[int], options: GenerationOptions, began: float) -> None:
        if choice and options.seed is not None:
            options = replace(options, seed=(options.seed + choice) & MAX_SEED)
        reader = Reader(self._lease.harmony.parser(), self._request.stops, [tool.name for tool in self._request.tools])
        with self._lease.engine.generate(ids, options) as generation:
            self._generation = generation
            if self._cancelled.is_set():
                generation.cancel()
            for event in reader.read(generation):
                if not self._spoke and not isinstance(event, End):
                    self._spoke = True
                    self._watch.turn_spoke(time.perf_counter() - began)
                if isinstance(event, End):
                    self._ends.append(event)
                    if event.reason == "error":  # not posted: an error before any text has a status of its own
                        self.failed = (choice, event)
                        continue
                self._post((choice, event))

    def _post(self, item: Happening | BaseException | None) -> None:
        """Hands over; the event loop is woken once for all that comes before it looks."""
        self._posted.append(item)
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # a loop that has ended wants nothing any more
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._told = False  # first: what is posted from now on tells again
        self._ready.set()


def prepare(engine: Engine, harmony: Harmony, request: TurnRequest) -> tuple[list[int], GenerationOptions]:
    """A request as the engine takes it: the prompt's ids, and options with grammar and stop tokens.

    Raises:
        InvalidRequest: it cannot be rendered, or its formats cannot be enforced.
        ContextOverflow: the prompt leaves no room for an answer.
    """

    grammar = turn_grammar(
        tools=request.tools,
        tool_choice=request.tool_choice,
        allowed=request.allowed,
        response_format=request.response_format,
    )
    options = replace(request.options, grammar=grammar, stop_token_ids=STOP_TOKENS)
    return prompt(engine, harmony, request), options


def warm_up(engine: Engine, harmony: Harmony) -> None:
    """Generates one token, so that what is made on first use is there for the first client.

    Raises:
        GptOssError: the engine does not work.
    """
    ids = prompt(engine, harmony, TurnRequest((Message("user", ""),)))
    with engine.generate(ids, GenerationOptions(max_new_tokens=1)) as generation:
        for _ in generation:
            pass


def prompt(engine: Engine, harmony: Harmony, request: TurnRequest) -> list[int]:
    """The prompt's ids.

    Raises:
        InvalidRequest: it cannot be rendered.
        ContextOverflow: it leaves no room for an answer, whatever may be dropped.
    """
    messages = list(request.messages)
    while True:
        try:
            return _rendered(engine, harmony, replace(request, messages=tuple(messages)))
        except ContextOverflow:
            if not request.drop_oldest or not _drop_oldest(messages):
                raise


def _rendered(engine: Engine, harmony: Harmony, request: TurnRequest) -> list[int]:
    room = engine.info.context_length
    texts = [text for message in request.messages for text in (message.content, message.reasoning)]
    if sum(map(len, texts)) > room * _USUAL:
        _count(harmony, texts, room)
    ids = harmony.render(
        request.messages,
        tools=request.tools,
        effort=request.effort,
        date=request.date,
        response_format=request.response_format,
    )
    if len(ids) >= room:
        raise _overflow(f"{len(ids):,} tokens", room)
    return ids


def _count(harmony: Harmony, texts: Sequence[str], room: int) -> None:
    """Raises as soon as texts have more tokens than there is room for."""
    count = 0
    for text in texts:
        for start in range(0, len(text), _SLICE):
            count += len(harmony.encode(text[start : start + _SLICE]))
            if count > room:
                raise _overflow(f"more than {count:,} tokens", room)


def _overflow(length: str, room: int) -> ContextOverflow:
    return ContextOverflow(
        f"the conversation has {length} and the context holds {room:,} tokens with the answer",
        remedy="Shorten it, or start a new one.",
    )


def _drop_oldest(messages: list[Message]) -> bool:
    """Takes the oldest user's turn with all that followed it; False where only the last is left."""
    turns = [at for at, message in enumerate(messages) if message.role == "user"]
    if len(turns) < 2:
        return False
    del messages[turns[0] : turns[1]]
    return True
