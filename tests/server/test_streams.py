"""Server-sent events on a scripted connection: comments while it is quiet, and an end when the client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from gptoss_runtime.server.streams import EventStream


def play(
    events: Callable[[asyncio.Event, asyncio.Event], AsyncGenerator[bytes]], *, leave_after: bytes | None = None
) -> list[bytes]:
    """What a client gets of a stream; it leaves after having got some bytes, if told so."""

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

        await EventStream(events(quiet, gone), quiet_seconds=0.01)({"type": "http"}, receive, send)
        return got

    return asyncio.run(run())


def test_a_quiet_stream_says_that_it_lives() -> None:
    async def events(quiet: asyncio.Event, gone: asyncio.Event) -> AsyncGenerator[bytes]:
        yield b"one"
        await quiet.wait()
        yield b"two"

    got = play(events)
    assert (got[0], got[-2], got[-1]) == (b"one", b"two", b"")
    assert set(got[1:-2]) == {b": still working\n\n"}


def test_the_events_end_when_the_client_goes() -> None:
    closed = []

    async def events(quiet: asyncio.Event, gone: asyncio.Event) -> AsyncGenerator[bytes]:
        try:
            yield b"one"
            await asyncio.Event().wait()  # for ever
        finally:
            closed.append(True)

    assert play(events, leave_after=b"one")[0] == b"one"
    assert closed == [True]


def test_an_error_of_the_events_is_raised() -> None:
    async def events(quiet: asyncio.Event, gone: asyncio.Event) -> AsyncGenerator[bytes]:
        yield b"one"
        raise KeyError("x")

    with pytest.raises(KeyError):
        play(events)
