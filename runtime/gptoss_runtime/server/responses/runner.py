"""Runs a turn to its end as a response: streamed, whole or in the background, and kept when it is over."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from gptoss_runtime.server.errors import to_problem
from gptoss_runtime.server.responses.store import ResponseStore, StoredResponse
from gptoss_runtime.server.responses.writer import ResponseWriter, StreamEvent
from gptoss_runtime.server.sse import encode_event
from gptoss_runtime.server.turn import Turn
from gptoss_runtime.server.turn_events import ChoiceEnd, TurnEvent


class ResponseRunner:
    """A response being generated; call ``stream`` or ``complete``, once.

    Args:
        turn: the turn being generated.
        writer: writes its events.
        stored: its entry in the store; ``None``: it is not kept.
        store: where responses are kept.
    """

    def __init__(self, turn: Turn, writer: ResponseWriter, stored: StoredResponse | None, store: ResponseStore) -> None:
        self._turn = turn
        self._writer = writer
        self._stored = stored
        self._store = store
        self._error: Exception | None = None  # raised by the engine while it generated

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yields the response's events, encoded."""
        events = self._events()
        try:
            async for batch in events:
                if batch:
                    yield b"".join(encode_event(event, event["type"]) for event in batch)
        finally:
            await events.aclose()

    async def complete(self) -> dict[str, Any]:
        """Generates to the end and returns the response.

        Raises:
            Exception: the engine failed.
        """
        async for _ in self._events():
            pass
        if self._error is not None:
            raise self._error
        return self._writer.response

    async def _events(self) -> AsyncGenerator[list[StreamEvent]]:
        """Yields all events, as many as there are at a time; updates the store at the end."""
        yield list(self._writer.start())
        events = self._turn.events()
        try:
            async for batch in events:
                yield [written for _, event in batch for written in self._write(event)]
        except Exception as error:  # the status may be sent already: the error goes into the response
            self._error = error
            end = self._turn.failed and self._turn.failed[1]
            yield list(self._writer.fail(to_problem(error), end, self._turn.prompt_tokens))
        finally:
            await events.aclose()
            self._update_store()

    def _write(self, event: TurnEvent) -> Iterator[StreamEvent]:
        if isinstance(event, ChoiceEnd):
            yield from self._writer.finish(event, self._turn.prompt_tokens, time.time())
        else:
            yield from self._writer.write(event)

    def _update_store(self) -> None:
        response = self._writer.response
        if response["status"] == "in_progress":  # the client disconnected
            response["status"] = "cancelled"
        if self._stored is not None and response["id"] in self._store:  # unless it was deleted meanwhile
            self._stored.cancel = None
            self._store.put(self._stored)
