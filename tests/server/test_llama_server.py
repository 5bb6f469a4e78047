"""Verifies what docs/serving.md says about llama.cpp's server, with the same nano."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.packages import install_packages
from tests.server.running import MODEL, PERSON, WEATHER, ask

PACKAGES = ("xllamacpp==2026.10.11549", "gguf==0.19.0")
SCRIPT = Path(__file__).parent / "clients" / "llama_server.py"
SCHEMA = {"name": "person", "schema": PERSON, "strict": True}
TOOL = {"type": "function", "function": WEATHER}
ANNA = "Anna is 31 and lives in Oslo. Give me JSON."
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def llama(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("llama")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(install_packages("llama", *PACKAGES)), *sys.path])}
    command = [sys.executable, str(SCRIPT), str(nano_checkpoint), str(folder), str(port)]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment) as process,
    ):
        assert process.stdout is not None
        try:
            while (line := process.stdout.readline()) and not line.startswith(b"http"):
                pass
            assert line, (folder / "log").read_text("utf-8", "replace")[-2000:]
            with httpx.Client(base_url=line.decode().strip(), timeout=120) as client:
                yield client
        finally:
            process.kill()


def chat(llama: httpx.Client, text: str = "What is 27 + 45?", **more: Any) -> httpx.Response:
    return llama.post("/v1/chat/completions", json=ask(text, **more))


def message(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]


def prompt_tokens(llama: httpx.Client, text: str) -> int:
    return int(chat(llama, text, max_tokens=1).json()["usage"]["prompt_tokens"])


def respond(llama: httpx.Client, question: str = "What is 27 + 45?", /, **more: Any) -> httpx.Response:
    return llama.post("/v1/responses", json={"model": MODEL, "input": question, "temperature": 0, **more})


def test_what_it_supports(llama: httpx.Client) -> None:
    plain = message(chat(llama))
    assert (plain["content"], plain["reasoning_content"][:15]) == ("27 + 45 = 72", "Add 27 and 45. ")
    wanted = {"type": "json_schema", "json_schema": SCHEMA}
    assert message(chat(llama, ANNA, response_format=wanted))["content"] == '{"name":"Anna","age":31,"city":"Oslo"}'
    [call] = message(chat(llama, "What's the weather in Paris?", tools=[TOOL]))["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": '{"city":"Paris"}'}
    assert len(chat(llama, n=2).json()["choices"]) == 2
    assert prompt_tokens(llama, "one\0 two three four") > prompt_tokens(llama, "one")
    assert chat(llama, "word " * 6000).status_code == 400
    assert chat(llama, max_tokens=5, max_completion_tokens=5).json()["choices"][0]["finish_reason"] == "length"
    assert "llamacpp:" in llama.get("/metrics").text
    answer = llama.post("/v1/messages", json={"model": MODEL, "max_tokens": 200, "messages": ask("hello")["messages"]})
    assert answer.json()["type"] == "message"


def test_control_tokens_in_user_text_take_effect(llama: httpx.Client) -> None:
    assert prompt_tokens(llama, "hello<|end|>") == prompt_tokens(llama, "hello") + 1


def test_invalid_values_are_accepted(llama: httpx.Client) -> None:
    pirate = {**ask("hello"), "messages": [{"role": "pirate", "content": "hello"}]}
    assert message(llama.post("/v1/chat/completions", json=pirate))
    assert message(chat(llama, temperature=-5))
    other = {"type": "function", "function": {**WEATHER, "name": "get_time"}}
    choice = {"type": "function", "function": {"name": "get_time"}}
    [call] = message(chat(llama, "What's the weather in Paris?", tools=[other, TOOL], tool_choice=choice))["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        answer = llama.post("/v1/chat/completions", json=ask("hello"), headers=headers)
        assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://evil.example"


def test_logprobs_of_all_tokens(llama: httpx.Client) -> None:
    answer = chat(llama, logprobs=True, top_logprobs=2).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["token"] == "<|channel|>"


def test_responses(llama: httpx.Client) -> None:
    first = respond(llama)
    assert first.json()["output"][-1]["content"][0]["text"] == "27 + 45 = 72"
    assert llama.get(f"/v1/responses/{first.json()['id']}").status_code == 404
    assert respond(llama, previous_response_id=first.json()["id"]).status_code == 400
    assert respond(llama, background=True).json()["status"] == "completed"
    content = respond(llama, ANNA, text={"format": {"type": "json_schema", **SCHEMA}}).json()["output"][-1]["content"]
    assert "city" not in content[0]["text"]  # though the schema requires it


def test_custom_tools(llama: httpx.Client) -> None:
    assert chat(llama, tools=[{"type": "custom", "custom": {"name": "shell"}}]).status_code == 500
    assert respond(llama, tools=[{"type": "custom", "name": "shell"}]).status_code == 200


def test_unbounded_queue(llama: httpx.Client) -> None:
    def one(_: int) -> int:  # each on its own connection
        url = f"{llama.base_url}/v1/chat/completions"
        return httpx.post(url, json=ask("hello", max_tokens=2), timeout=120, verify=False, trust_env=False).status_code

    with ThreadPoolExecutor(300) as many:
        assert set(many.map(one, range(300))) == {200}
