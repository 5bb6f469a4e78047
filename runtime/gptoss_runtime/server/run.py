"""Runs an app on a socket until it is told to stop. Knows uvicorn; knows nothing of routes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import sys
from collections.abc import Callable

import uvicorn

from gptoss_runtime.errors import ResourceError
from gptoss_runtime.server.app import create_app
from gptoss_runtime.server.host import ModelHost
from gptoss_runtime.server.settings import Settings

_GRACE = 5  # seconds that answers under way are given at the end


def run(settings: Settings, host: ModelHost, *, ready: Callable[[str], None]) -> None:
    """Serves until Ctrl+C or a termination signal, then unloads and returns.

    The catalog's default model is loaded first, so that what is wrong with it is said at once.

    Args:
        settings: where, and for whom.
        host: the models.
        ready: told the URL when connections are taken.

    Raises:
        ResourceError: the address is taken, or is none of this machine's.
        GptOssError: the default model cannot be loaded.
    """
    with listening(settings) as taken:
        if host.catalog.default is not None:
            asyncio.run(host.load(host.catalog.default))
        port = taken.getsockname()[1]
        server = server_of(dataclasses.replace(settings, port=port), host)
        ready(dataclasses.replace(settings, port=port).url)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended cleanly by then, and passes it on
            server.run(sockets=[taken])


def server_of(settings: Settings, host: ModelHost) -> uvicorn.Server:
    """uvicorn, set up: no access log (addresses and paths are nobody's business), no WebSockets, h11 for its bounds."""
    return uvicorn.Server(
        uvicorn.Config(
            create_app(settings, host),
            http="h11",
            ws="none",
            lifespan="on",
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_GRACE,
        )
    )


def listening(settings: Settings) -> socket.socket:
    """A listening socket.

    Raises:
        ResourceError: the address is taken, or is none of this machine's.
    """
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # else another program may take over the port under this one
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, settings.port))
        taken.listen(2048)
    except OSError as error:
        taken.close()
        raise ResourceError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror or error}",
            remedy="Choose another --port (0 takes a free one), or stop the program that has it.",
        ) from error
    return taken
