"""A minimal HTTP/1.1 client for load tests: one request per connection, with disconnects and slow reading.

Client libraries would use more processor time than the server under test.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

_SMALL = 4096  # receive buffer of a slow reader's socket, in bytes


@dataclass(slots=True)
class Answer:
    """A response that is being received."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def body(self) -> bytes:
        """The whole body."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body's bytes as they arrive.

        Raises:
            asyncio.IncompleteReadError: the server closed the connection before the end.
        """
        if "content-length" in self.headers:
            yield await self.reader.readexactly(int(self.headers["content-length"]))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)

    async def events(self) -> AsyncIterator[tuple[float, Any]]:
        """Yields (time of arrival, event); "[DONE]" as a string."""
        rest = b""
        async for chunk in self.chunks():
            now = time.perf_counter()
            *whole, rest = (rest + chunk).split(b"\n\n")
            for event in whole:
                _, data, text = event.partition(b"data: ")
                if data:  # else a comment
                    yield now, "[DONE]" if text == b"[DONE]" else json.loads(text)
        assert not rest, rest[-200:]


@asynccontextmanager
async def post(
    address: tuple[str, int], path: str, content: bytes, *, request_id: str, slow: bool = False
) -> AsyncIterator[Answer]:
    """Sends a request; leaving the block closes the connection, even before the end of the response.

    Args:
        address: the server's host and port.
        path: the route.
        content: the body.
        request_id: the value of X-Request-Id.
        slow: use a small receive buffer, so that the server has to buffer.
    """
    reader, writer = await _connect(address, slow)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost:{address[1]}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nX-Request-Id: {request_id}\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines if line)
        yield Answer(int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, reader)
    finally:
        writer.transport.abort()


async def _connect(address: tuple[str, int], slow: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not slow:
        return await asyncio.open_connection(*address)
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
    await asyncio.get_running_loop().sock_connect(connection, address)
    return await asyncio.open_connection(sock=connection, limit=_SMALL)
