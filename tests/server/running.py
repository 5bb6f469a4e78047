"""Starts a real server in a thread, and has the requests that many tests send."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from gptoss_runtime.server.model_host import ModelHost
from gptoss_runtime.server.run import create_server, open_socket
from gptoss_runtime.server.settings import Settings

MODEL = "gptoss-nano"
WEATHER = {
    "name": "get_weather",
    "description": "Current weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Running:
    """A running server."""

    url: str
    port: int
    app: Any

    @property
    def host(self) -> ModelHost:
        host: ModelHost = self.app.state.services.host
        return host

    def metric(self, name: str, **labels: str) -> float:
        """A value from GET /metrics; 0 if there is none."""
        return self.app.state.services.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.contextmanager
def serving(settings: Settings, host: ModelHost) -> Iterator[Running]:
    """Runs a server in a thread for the length of the block."""
    with open_socket(settings) as listener:
        port = listener.getsockname()[1]
        server = create_server(replace(settings, port=port), host)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{port}", port, server.config.app)
        finally:
            server.should_exit = True
            thread.join()


LONG = {"type": "object", "properties": {"x": {"type": "string", "minLength": 3000}}, "required": ["x"]}
ENDLESS: dict[str, Any] = {  # its answer lasts until the client disconnects
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello"}],
    "max_completion_tokens": 3000,
    "response_format": {"type": "json_schema", "json_schema": {"name": "long", "schema": LONG}},
}
ENDLESS_RESPONSE: dict[str, Any] = {
    "model": MODEL,
    "input": "hello",
    "max_output_tokens": 3000,
    "text": {"format": {"type": "json_schema", "name": "long", "schema": LONG}},
}


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a condition, for a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "the condition was not met within a minute"
        time.sleep(0.005)


def ask(text: str, **more: Any) -> dict[str, Any]:
    """The body of a chat completion: one question, greedy sampling, a short answer."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_completion_tokens": 200,
        **more,
    }
