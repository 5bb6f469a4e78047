"""Clients that disconnect, wait, read slowly or come all at once: slots are freed, and answers are not mixed up."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import openai
import pytest

from tests.server.running import ENDLESS, ENDLESS_RESPONSE, MODEL, Running, ask, wait_until

Serve = Callable[..., AbstractContextManager[Running]]


def count_users(running: Running) -> int:
    return sum(loaded.users for loaded in running.host.list_loaded())


def send_unread(running: Running, body: dict[str, Any], path: str = "/v1/chat/completions") -> socket.socket:
    """Sends a request and does not read its answer."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost:{running.port}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", running.port))
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_disconnect_frees_the_slot(server: Running, http: httpx.Client, path: str, stream: bool) -> None:
    body = ENDLESS if "chat" in path else ENDLESS_RESPONSE
    for when in ("early", "in mid-answer"):
        connection = send_unread(server, {**body, "stream": stream}, path)
        wait_until(lambda: count_users(server) == 1)
        if when == "in mid-answer":
            wait_until(lambda: server.metric("gptoss_requests_running") == 1)
        connection.close()
        wait_until(lambda: count_users(server) == 0)
    wait_until(lambda: server.metric("gptoss_requests_running") == server.metric("gptoss_requests_waiting") == 0)
    assert http.post("/v1/chat/completions", json=ask("hello")).status_code == 200


def test_disconnect_cancels_the_response(server: Running, http: httpx.Client) -> None:
    connection = send_unread(server, ENDLESS_RESPONSE, "/v1/responses")
    wait_until(lambda: count_users(server) == 1)
    wait_until(lambda: http.get("/v1/responses?limit=1").json()["data"][0]["status"] == "in_progress")
    connection.close()
    wait_until(lambda: http.get("/v1/responses?limit=1").json()["data"][0]["status"] == "cancelled")


def test_disconnect_leaves_the_queue(serve: Serve) -> None:
    with serve(engine={"slots": 1}) as running, httpx.Client(base_url=running.url, timeout=60) as http:
        first = send_unread(running, ENDLESS)
        wait_until(lambda: running.metric("gptoss_requests_running") == 1)
        waiting = [send_unread(running, {**ENDLESS, "stream": True}) for _ in range(3)]
        wait_until(lambda: count_users(running) == 4)
        for connection in waiting:
            connection.close()
        wait_until(lambda: count_users(running) == 1)
        first.close()
        assert http.post("/v1/chat/completions", json=ask("hello")).status_code == 200


def test_full_queue_is_503_with_retry_after(serve: Serve) -> None:
    with serve(engine={"slots": 1, "queue": 1}, host={"max_turns": 2}) as running:
        held = [send_unread(running, ENDLESS) for _ in range(2)]
        wait_until(lambda: count_users(running) == 2)
        with httpx.Client(base_url=running.url, timeout=60) as http:
            for stream in (False, True):
                answer = http.post("/v1/chat/completions", json={**ask("hello"), "stream": stream})
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "overloaded"
                assert int(answer.headers["retry-after"]) >= 1
            assert http.get("/health").status_code == 200
            for connection in held:
                connection.close()
            wait_until(lambda: count_users(running) == 0)
            assert http.post("/v1/chat/completions", json=ask("hello")).status_code == 200


@pytest.mark.integration
def test_slow_reader_holds_no_slot(server: Running, http: httpx.Client) -> None:
    connection = send_unread(server, {**ENDLESS, "max_completion_tokens": 600, "stream": True})
    wait_until(lambda: count_users(server) == 1)
    wait_until(lambda: count_users(server) == 0)  # generated to its end, though none of it was read
    assert http.post("/v1/chat/completions", json=ask("hello")).status_code == 200
    connection.close()


@pytest.mark.integration
def test_answers_are_not_mixed_up(client: openai.OpenAI) -> None:
    sums = [(a, b) for a in (11, 23, 32) for b in (14, 25, 31, 42)]

    def answer(pair: tuple[int, int]) -> str:
        chunks = client.chat.completions.create(**ask(f"What is {pair[0]} + {pair[1]}?"), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    with ThreadPoolExecutor(6) as pool:
        for (a, b), text in zip(sums, pool.map(answer, sums), strict=True):
            assert text.startswith(f"{a} + {b} = ")


def test_metrics(server: Running, http: httpx.Client) -> None:
    labels = {"method": "POST", "route": "/v1/chat/completions", "status": "200"}
    before = server.metric("gptoss_http_requests_total", **labels)
    tokens = server.metric("gptoss_tokens_total", kind="completion")
    usage = http.post("/v1/chat/completions", json=ask("What is 27 + 45?")).json()["usage"]
    wait_until(lambda: server.metric("gptoss_requests_running") == 0)
    assert server.metric("gptoss_http_requests_total", **labels) == before + 1
    assert server.metric("gptoss_tokens_total", kind="completion") == tokens + usage["completion_tokens"]
    page = http.get("/metrics").text
    for name in ("time_to_first_token_seconds_bucket", "time_per_output_token_seconds_bucket", "requests_waiting"):
        assert f"gptoss_{name}" in page
    assert MODEL not in page
