"""Detects clients that disconnect before their response is complete. Knows ASGI; knows nothing of what is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

T = TypeVar("T")


class ClientDisconnected(Exception):  # noqa: N818 - not an error: no client is left to report it to
    """The client closed the connection before its response was complete."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T], cancel: Callable[[], None]) -> T:
    """Awaits work for as long as the client stays connected.

    Args:
        request: the client's request.
        work: what is awaited.
        cancel: called if the client disconnects first.

    Raises:
        ClientDisconnected: the client disconnected first.
    """
    working = asyncio.create_task(work)
    disconnect = asyncio.create_task(wait_for_disconnect(request.receive))
    try:
        await asyncio.wait((working, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            cancel()
            raise ClientDisconnected
        return working.result()
    finally:
        working.cancel()
        disconnect.cancel()
        await asyncio.gather(working, disconnect, return_exceptions=True)


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
