"""A real server over nano on a free port, started once per run, and clients for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gptoss_runtime.server.engine_options import EngineOptions
from gptoss_runtime.server.model_host import ModelHost
from gptoss_runtime.server.served_models import ServedModels
from gptoss_runtime.server.settings import Settings
from tests.server.node import Node
from tests.server.running import MODEL, Running, serving


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabulary")


@pytest.fixture(scope="session")
def serve(nano_artifact: Path, vocabulary: Path) -> Callable[..., AbstractContextManager[Running]]:
    """Starts a server over nano: ``host`` has options for ``ModelHost``, ``engine`` for ``EngineOptions``; the rest is
    for ``Settings``."""

    def start(*, engine: dict[str, Any] | None = None, host: dict[str, Any] | None = None, **settings: Any) -> Any:
        options = EngineOptions(threads=1, **(engine or {"slots": 2}))
        models = ModelHost(ServedModels({MODEL: nano_artifact}), options.load, cache=vocabulary, **(host or {}))
        return serving(Settings(port=0, **{"tell_date": False, **settings}), models)

    return start


@pytest.fixture(scope="session")
def server(serve: Callable[..., AbstractContextManager[Running]]) -> Iterator[Running]:
    with serve() as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def node() -> Node:
    """Node with the JavaScript clients."""
    return Node.ensure()
