"""A lean HTTP/1.1 client for load: one request a connection, its answer as it arrives, left or read slowly at will.

Client libraries would take more of the processor than the server under test. Knows requests and server-sent events.
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

_SMALL = 4096  # bytes that a slow reader's socket takes before the server has to wait


@dataclass(slots=True)
class Answer:
    """An answer under way."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncIterator[bytes]:
        """Its bytes as they come.

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
        """Its events and when each was there; "[DONE]" as it is."""
        rest = b""
        async for piece in self.pieces():
            now = time.perf_counter()
            *whole, rest = (rest + piece).split(b"\n\n")
            for event in whole:
                _, data, text = event.partition(b"data: ")
                if data:  # else a comment
                    yield now, "[DONE]" if text == b"[DONE]" else json.loads(text)
        assert not rest, rest[-200:]


@asynccontextmanager
async def posted(
    address: tuple[str, int], path: str, content: bytes, *, request_id: str, slow: bool = False
) -> AsyncIterator[Answer]:
    """Sends a request; leaving the block closes the connection, whatever is left of the answer.

    Args:
        address: the server's host and port.
        path: the route.
        content: the body.
        request_id: which the answer has to repeat.
        slow: take little at a time, so that the server has to keep the rest.
    """
    reader, writer = await _connected(address, slow)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost:{address[1]}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nX-Request-Id: {request_id}\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines if line)
        yield Answer(int(status.split()[1]), {name.lower(): value for name, _, value in pairs}, reader)
    finally:
        writer.transport.abort()


async def _connected(address: tuple[str, int], slow: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not slow:
        return await asyncio.open_connection(*address)
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
    await asyncio.get_running_loop().sock_connect(connection, address)
    return await asyncio.open_connection(sock=connection, limit=_SMALL)
