"""Answers over HTTP: JSON, and server-sent events by hand. Knows the wire; knows nothing of what is sent.

JSON is written in ASCII, so that half a surrogate pair from a client cannot break the answer that repeats it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gptoss_runtime.server.errors import Problem

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
_QUIET = b": still working\n\n"
_encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"))  # json.dumps would make one an event


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """As bytes."""
        return _json(content)


def _json(content: Any) -> bytes:
    return _encoder.encode(content).encode()


def failure(problem: Problem) -> Json:
    """An error's answer."""
    return Json(problem.body, problem.status, problem.headers)


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + _json(data) + b"\n\n"


class EventStream(Response):
    """Server-sent events as they are made; when the client goes, the iterator is closed at once.

    Args:
        events: the encoded events.
        quiet_seconds: after so long without one, a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], *, quiet_seconds: float) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._quiet = quiet_seconds
        self._spoke = 0.0  # when the client was last sent something

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            results = await asyncio.gather(sending, gone, return_exceptions=True)
        error = results[0]
        if isinstance(error, Exception) and not isinstance(error, OSError):  # a broken pipe is a client that went
            raise error

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._spoke = time.monotonic()
        reassuring = asyncio.create_task(self._reassure(send))
        try:
            async for body in self._events:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self._spoke = time.monotonic()
        finally:
            reassuring.cancel()
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b""})

    async def _reassure(self, send: Send) -> None:
        """Says in quiet times that the server lives; one task a stream, since one an event would cost too much."""
        while True:
            quiet = time.monotonic() - self._spoke
            if quiet < self._quiet:
                await asyncio.sleep(self._quiet - quiet)
                continue
            await send({"type": "http.response.body", "body": _QUIET, "more_body": True})
            self._spoke = time.monotonic()


class ClientGone(Exception):  # noqa: N818 - nothing is wrong, and nobody is there to be told
    """The client closed the connection before its answer."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T], cancel: Callable[[], None]) -> T:
    """Waits for work.

    Args:
        request: whose client is watched.
        work: what is waited for.
        cancel: called when the client goes before.

    Raises:
        ClientGone: it did.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            cancel()
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Returns when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
