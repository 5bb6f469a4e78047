"""Serves the page and a scripted API, for what a real model does not do on demand: broken streams, hostile text.

Sends the same streams as ``gptoss serve``, over a real socket, under the same Content-Security-Policy.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gptoss_runtime.server.page.routes import POLICY

PAGE = Path(__file__).parents[2] / "runtime" / "gptoss_runtime" / "server" / "page" / "static"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

Write = Callable[[bytes], None]


@dataclass
class Script:
    """The API's answers, and the requests it has received.

    Attributes:
        answers: one per request, in order: a status with a JSON body, or a function that writes the stream.
        asked: the requests' bodies.
        paths: the requests' paths.
        key: the required API key; ``None``: none is required.
        url: the server's URL.
    """

    answers: list[tuple[int, dict[str, Any]] | Callable[[Write], None]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    key: str | None = None
    url: str = ""


def event(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    """A chunk of a stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    chunk = {"object": "chat.completion.chunk", "model": "scripted", "choices": choices} | more
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def text(content: str, *, reasoning: str = "", calls: list[dict[str, Any]] | None = None) -> Callable[[Write], None]:
    """An answer with this content, reasoning and calls that ends normally."""

    def write(send: Write) -> None:
        send(event({"role": "assistant", "content": ""}))
        if reasoning:
            send(event({"reasoning": reasoning, "reasoning_content": reasoning}))
        for letter in content:
            send(event({"content": letter}))
        for index, call in enumerate(calls or []):
            send(event({"tool_calls": [{"index": index, "type": "function"} | call]}))
        send(event({}, "tool_calls" if calls else "stop"))
        usage = {"prompt_tokens": 7, "completion_tokens": 42, "total_tokens": 49}
        timings = {"time_to_first_token_ms": 120.0, "prompt_per_second": 800.0, "predicted_per_second": 93.25}
        send(event(usage=usage, timings=timings) + b"data: [DONE]\n\n")

    return write


@contextmanager
def page_server() -> Iterator[Script]:
    """Runs a server for the length of the block."""
    state = Script()

    class Handler(_Handler):
        script = state

    server = _Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Prints nothing: some tests make the page disconnect."""


class _Handler(BaseHTTPRequestHandler):
    script: Script

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.script.paths.append(self.path)
        if self.path == "/v1/models" and self._refused():
            return
        if self.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": "scripted"}, {"id": "other"}]})
        elif self.path == "/openai/status":
            loaded = {"id": "scripted", "provider": "directml", "device": "A Card", "context_length": 8192}
            self._json(200, {"models": [loaded]})
        else:
            name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
            path = PAGE / name
            if name in {path.name for path in PAGE.iterdir()}:
                self._bytes(200, path.read_bytes(), _TYPES[path.suffix])
            else:
                self._json(404, {"error": {"message": "not here"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        self.script.asked.append(body)
        answer = self.script.answers.pop(0)
        if isinstance(answer, tuple):
            self._json(*answer)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

        def send(data: bytes) -> None:
            self.wfile.write(data)
            self.wfile.flush()

        answer(send)

    def _refused(self) -> bool:
        if self.script.key is None or self.headers.get("Authorization") == f"Bearer {self.script.key}":
            return False
        self._json(401, {"error": {"message": "the API key is missing or wrong", "code": "invalid_api_key"}})
        return True

    def _json(self, status: int, value: dict[str, Any]) -> None:
        self._bytes(status, json.dumps(value).encode(), "application/json")

    def _bytes(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)
