"""Server-sent events: encoding, keep-alive comments, and an end as soon as the client disconnects.

Knows the wire format; knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gptoss_runtime.server.connection import wait_for_disconnect
from gptoss_runtime.server.json_response import encode_json

DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": still working\n\n"


def encode_event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event with JSON data."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + encode_json(data) + b"\n\n"


class EventStream(Response):
    """Sends events as they are made; closes the generator as soon as the client disconnects.

    Args:
        events: the encoded events.
        keep_alive_seconds: how long the stream may be silent before a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], *, keep_alive_seconds: float) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._keep_alive_seconds = keep_alive_seconds
        self._last_sent = 0.0  # on time.monotonic's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        sending = asyncio.create_task(self._send_events(send))
        disconnect = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await asyncio.wait((sending, disconnect), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, disconnect):
                task.cancel()
            results = await asyncio.gather(sending, disconnect, return_exceptions=True)
        error = results[0]
        if isinstance(error, Exception) and not isinstance(error, OSError):  # a broken pipe: the client disconnected
            raise error

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._last_sent = time.monotonic()
        keep_alive = asyncio.create_task(self._keep_alive(send))
        try:
            async for body in self._events:
                await send({"type": "http.response.body", "body": body, "more_body": True})
                self._last_sent = time.monotonic()
        finally:
            keep_alive.cancel()
            await self._events.aclose()
        await send({"type": "http.response.body", "body": b""})

    async def _keep_alive(self, send: Send) -> None:
        """Sends a comment whenever the stream has been silent too long; one task per stream, as a timer per event
        would cost too much."""
        while True:
            silent = time.monotonic() - self._last_sent
            if silent < self._keep_alive_seconds:
                await asyncio.sleep(self._keep_alive_seconds - silent)
                continue
            await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})
            self._last_sent = time.monotonic()
