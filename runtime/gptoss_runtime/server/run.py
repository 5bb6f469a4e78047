"""Runs the app on a socket until it is told to stop. Knows uvicorn; knows nothing of routes."""

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
from gptoss_runtime.server.model_host import ModelHost
from gptoss_runtime.server.settings import Settings

_SHUTDOWN_SECONDS = 5  # for answers in progress to finish


def run(settings: Settings, host: ModelHost, *, ready: Callable[[str], None]) -> None:
    """Serves until Ctrl+C or a termination signal, then unloads all models and returns.

    The default model is loaded before the server accepts connections, so that its errors end the start.

    Args:
        settings: where to listen, and who may call.
        host: the models.
        ready: called with the URL as soon as connections are accepted.

    Raises:
        ResourceError: the address is taken, or not one of this machine's.
        GptOssError: the default model cannot be loaded.
    """
    with open_socket(settings) as listener:
        if host.models.default is not None:
            asyncio.run(host.load(host.models.default))
        settings = dataclasses.replace(settings, port=listener.getsockname()[1])
        server = create_server(settings, host)
        ready(settings.url)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has shut down cleanly by then, and raises it again
            server.run(sockets=[listener])


def create_server(settings: Settings, host: ModelHost) -> uvicorn.Server:
    """Sets uvicorn up: no access log (addresses and paths are private), no WebSockets, h11 for its size limits."""
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
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
    )


def open_socket(settings: Settings) -> socket.socket:
    """Opens the listening socket.

    Raises:
        ResourceError: the address is taken, or not one of this machine's.
    """
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # SO_REUSEADDR would let another program take over the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, settings.port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ResourceError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
            remedy="Choose another --port (0 takes a free one), or stop the program that uses it.",
        ) from error
    return listener
