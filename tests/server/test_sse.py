"""Server-sent events on a scripted connection: comments while the stream is silent, and an end at a disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from gptoss_runtime.server.sse import EventStream


def play(
    events: Callable[[asyncio.Event, asyncio.Event], AsyncGenerator[bytes]], *, leave_after: bytes | None = None
) -> list[bytes]:
    """Returns what a client receives of a stream; it disconnects after ``leave_after``."""

    async def run() -> list[bytes]:
        got: list[bytes] = []
        quiet, gone = asyncio.Event(), asyncio.Event()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                got.append(message["body"])
                if message["body"].startswith(b":"):
                    quiet.set()
                if message["body"] == leave_after:
                    gone.set()

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        await EventStream(events(quiet, gone), keep_alive_seconds=0.01)({"type": "http"}, receive, send)
        return got

    return asyncio.run(run())


def test_silent_stream_sends_comments() -> None:
    async def events(quiet: asyncio.Event, gone: asyncio.Event) -> AsyncGenerator[bytes]:
        yield b"one"
        await quiet.wait()
        yield b"two"

    got = play(events)
    assert (got[0], got[-2], got[-1]) == (b"one", b"two", b"")
    assert set(got[1:-2]) == {b": still working\n\n"}


def test_events_are_closed_when_the_client_disconnects() -> None:
    closed = []

    async def events(quiet: asyncio.Event, gone: asyncio.Event) -> AsyncGenerator[bytes]:
        try:
            yield b"one"
            await asyncio.Event().wait()  # forever
        finally:
            closed.append(True)

    assert play(events, leave_after=b"one")[0] == b"one"
    assert closed == [True]


def test_error_in_the_events_is_raised() -> None:
    async def events(quiet: asyncio.Event, gone: asyncio.Event) -> AsyncGenerator[bytes]:
        yield b"one"
        raise KeyError("x")

    with pytest.raises(KeyError):
        play(events)
