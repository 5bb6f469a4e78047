"""Non-finite logits, over a real socket: a 500 with a code, or an error event after the text so far."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gptoss_runtime.artifact.folder import TOKENIZER
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.server.engine_options import EngineOptions
from gptoss_runtime.server.model_host import ModelHost
from gptoss_runtime.server.served_models import ServedModels
from gptoss_runtime.server.settings import Settings
from tests.nonfinite import FAULTS, FaultyEngine, with_infinite_norm, with_poisoned_token
from tests.server.recorded import Recording, final, ids_of, serve_recorded, thought
from tests.server.running import MODEL, PERSON, WEATHER, Running, ask, serving, wait_until
from tests.tiers import mostly_integration

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
ANSWER = thought("Hm.") + final("It is three.")
HELLO, SAID = "hello", "Hello! How can I help"  # nano's answer to it, up to the poisoned token
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "greedy": {"temperature": 0},
    "sampling": {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 1},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 1, "presence_penalty": 1},
    "bias": {"logit_bias": {"17": 100, "18": -100}},
    "logprobs": {"logprobs": True, "top_logprobs": 5},
    "format": {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}},
    "tools": {"tools": [{"type": "function", "function": WEATHER}], "tool_choice": "required"},
    "stop": {"stop": ["never"]},
    "choices": {"n": 3},
}


@contextlib.contextmanager
def faulty(
    artifact: Path, vocabulary: Path, faults: dict[int, tuple[int, str]]
) -> Iterator[tuple[Recording, httpx.Client]]:
    """Runs a server that replays ``ANSWER`` with these faults by number of the answer, from 1; and a client."""
    player = partial(FaultyEngine, faults=faults)
    with (
        serve_recorded(artifact, vocabulary, [ANSWER] * 30, player=player) as recording,
        httpx.Client(base_url=recording.url, timeout=60) as http,
    ):
        yield recording, http


def assert_numerical_error(answer: httpx.Response) -> None:
    """Checks that an answer is this error, in OpenAI's shape."""
    assert answer.status_code == 500, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "numerical_error", None)
    assert "logits are not finite" in error["message"]
    assert "gptoss doctor ARTIFACT --check" in error["message"]


def read_events(answer: httpx.Response) -> list[Any]:
    """The data of a stream's events, decoded."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def end(nano_artifact: Path, vocabulary: Path) -> int:
    """Tokens of ``ANSWER`` before its full stop."""
    return len(ids_of(Harmony.load(nano_artifact / TOKENIZER, cache=vocabulary), ANSWER)) - 2


@pytest.mark.parametrize("fault", mostly_integration(FAULTS, fast={"one NaN", "all -inf"}))
def test_nonfinite_first_token_is_a_500(nano_artifact: Path, vocabulary: Path, fault: str) -> None:
    count = 2 * len(OPTIONS)
    with faulty(nano_artifact, vocabulary, dict.fromkeys(range(1, count + 3), (0, fault))) as (_, http):
        for more in OPTIONS.values():
            for stream in (False, True):
                assert_numerical_error(http.post(CHAT, json={**ask("x"), **more, "stream": stream}))
        for stream in (False, True):
            assert_numerical_error(http.post(RESPONSES, json={"input": "x", "stream": stream}))
        assert http.post(CHAT, json=ask("x")).status_code == 200
        assert http.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"stop": ["never"]}], ids=str)
def test_stream_keeps_the_text_before_a_failure(
    nano_artifact: Path, vocabulary: Path, end: int, more: dict[str, Any]
) -> None:
    with faulty(nano_artifact, vocabulary, dict.fromkeys((1, 2, 3), (end, "one NaN"))) as (_, http):
        assert_numerical_error(http.post(CHAT, json={**ask("x"), **more}))
        asked = {**ask("x"), **more, "stream": True, "stream_options": {"include_usage": True}}
        *chunks, error, done = read_events(http.post(CHAT, json=asked))
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == "It is three"
        assert "".join(delta.get("reasoning") or "" for delta in deltas) == "Hm."
        assert [choice["finish_reason"] for chunk in chunks[-2:] for choice in chunk["choices"]] == ["error"]
        assert chunks[-1]["usage"]["completion_tokens"] == end
        assert chunks[-1]["usage"]["prompt_tokens"] > 0
        assert error["error"]["code"] == "numerical_error"
        assert done == "[DONE]"  # as after every error in a stream
        *chunks, error, done = read_events(http.post(CHAT, json={**ask("x"), **more, "stream": True}))
        assert chunks[-1]["choices"][0]["finish_reason"] == "error"
        assert chunks[-1]["timings"]["predicted_per_second"] > 0
        assert not any("usage" in chunk for chunk in chunks)
        assert error["error"]["code"] == "numerical_error"


def test_sdk_raises_the_error(nano_artifact: Path, vocabulary: Path) -> None:
    faults = {1: (0, "all NaN"), 2: (9, "all NaN"), 3: (9, "all NaN"), 4: (9, "all NaN")}
    with (
        faulty(nano_artifact, vocabulary, faults) as (recording, _),
        openai.OpenAI(base_url=f"{recording.url}/v1", api_key="unused", max_retries=0) as client,
    ):
        for _ in range(2):
            with pytest.raises(openai.InternalServerError) as whole:
                client.chat.completions.create(**ask("x"))
            assert whole.value.code == "numerical_error"
        reasons = []
        with pytest.raises(openai.APIError) as streamed:
            reasons.extend(
                chunk.choices[0].finish_reason for chunk in client.chat.completions.create(**ask("x"), stream=True)
            )
        assert streamed.value.code == "numerical_error"
        assert reasons[-1] == "error"
        with pytest.raises(openai.InternalServerError):
            client.responses.create(model=MODEL, input="x")
        assert client.responses.create(model=MODEL, input="x").output_text == "It is three."


def test_failure_in_one_of_several_choices(nano_artifact: Path, vocabulary: Path, end: int) -> None:
    """Choices are generated one after the other: earlier ones are complete, later ones are not started."""
    faults = {2: (0, "all -inf"), 4: (0, "all -inf")}
    with faulty(nano_artifact, vocabulary, faults) as (_, http):
        asked = {**ask("x"), "n": 3}
        assert_numerical_error(http.post(CHAT, json=asked))
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, usage, error, done = read_events(http.post(CHAT, json=asked))
        reasons = [
            (choice["index"], choice["finish_reason"])
            for chunk in chunks
            for choice in chunk["choices"]
            if choice["finish_reason"]
        ]
        assert reasons == [(0, "stop"), (1, "error")]
        assert usage["usage"]["completion_tokens"] == end + 2
        assert (error["error"]["code"], done) == ("numerical_error", "[DONE]")


def test_failed_response_keeps_its_output(nano_artifact: Path, vocabulary: Path, end: int) -> None:
    faults = dict.fromkeys((1, 2, 3), (end, "one +inf"))
    with faulty(nano_artifact, vocabulary, faults) as (_, http):
        assert_numerical_error(http.post(RESPONSES, json={"input": "x"}))
        streamed = read_events(http.post(RESPONSES, json={"input": "x", "stream": True}))
        assert [event["sequence_number"] for event in streamed] == list(range(len(streamed)))
        error, last = streamed[-2:]
        assert (error["type"], error["code"]) == ("error", "numerical_error")
        assert last["type"] == "response.failed"
        background = http.post(RESPONSES, json={"input": "x", "background": True}).json()
        wait_until(lambda: http.get(f"{RESPONSES}/{background['id']}").json()["status"] != "in_progress")
        kept = [http.get(f"{RESPONSES}/{response['id']}").json() for response in (last["response"], background)]
        for response in (last["response"], *kept):
            assert response["status"] == "failed"
            assert response["error"]["code"] == "server_error"  # OpenAI's list of codes is closed here
            assert "logits are not finite" in response["error"]["message"]
            assert response["usage"]["output_tokens"] == end
            assert response["output"][-1]["status"] == "incomplete"
            assert response["output"][-1]["content"][0]["text"] == "It is three"
        assert http.post(RESPONSES, json={"input": "x"}).json()["status"] == "completed"


@contextlib.contextmanager
def serve_artifact(artifact: Path, vocabulary: Path) -> Iterator[tuple[Running, httpx.Client]]:
    """Runs a real server over a damaged artifact, with its engine in its own process."""
    host = ModelHost(ServedModels({MODEL: artifact}), EngineOptions(threads=1, slots=2).load, cache=vocabulary)
    with (
        serving(Settings(port=0, tell_date=False), host) as running,
        httpx.Client(base_url=running.url, timeout=60) as http,
    ):
        yield running, http


@pytest.mark.integration
def test_model_that_always_overflows(nano_artifact: Path, vocabulary: Path, tmp_path: Path) -> None:
    with serve_artifact(with_infinite_norm(nano_artifact, tmp_path), vocabulary) as (running, http):
        for stream in (False, True):
            assert_numerical_error(http.post(CHAT, json={**ask("x"), "stream": stream}))
            assert_numerical_error(http.post(RESPONSES, json={"input": "x", "stream": stream, "model": MODEL}))
        assert_numerical_error(http.post(f"/openai/load/{MODEL}"))
        assert_numerical_error(http.get(f"/openai/load/{MODEL}"))
        assert http.get("/openai/loadedmodels").json() == []  # it was unloaded again
        assert http.get("/health").status_code == 200
        labels = {"method": "POST", "route": CHAT, "status": "500"}
        assert running.metric("gptoss_http_requests_total", **labels) == 2


@pytest.mark.integration
def test_real_model_that_fails_in_mid_answer(
    nano_artifact: Path, vocabulary: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [token] = Harmony.load(nano_artifact / TOKENIZER, cache=vocabulary).encode(" help")
    with serve_artifact(with_poisoned_token(nano_artifact, tmp_path, token), vocabulary) as (running, http):
        pid = _pid(running, http)
        with caplog.at_level(logging.ERROR, "gptoss.server"):
            asked = {**ask(HELLO), "stream": True, "stream_options": {"include_usage": True}}
            *chunks, usage, error, _ = read_events(http.post(CHAT, json=asked))
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        assert "".join(delta.get("content") or "" for delta in deltas) == SAID
        assert chunks[-1]["choices"][0]["finish_reason"] == "error"
        assert error["error"]["code"] == "numerical_error"
        generated = usage["usage"]["completion_tokens"]
        [logged] = [record.getMessage() for record in caplog.records]
        assert f"{generated} of them generated" in logged
        assert HELLO not in logged
        wait_until(lambda: running.metric("gptoss_answers_total", reason="error") == 1)
        wait_until(lambda: running.metric("gptoss_tokens_total", kind="completion") == generated)
        assert running.metric("gptoss_requests_running") == 0
        again = http.post(CHAT, json=ask("What is 27 + 45?")).json()
        assert again["choices"][0]["message"]["content"] == "27 + 45 = 72"
        assert_numerical_error(http.post(CHAT, json=ask(HELLO)))
        assert _pid(running, http) == pid


def _pid(running: Running, http: httpx.Client) -> int:
    assert http.post(f"/openai/load/{MODEL}").status_code == 200
    engine: Any = running.host.list_loaded()[0].engine
    assert engine.restarts == 0
    pid: int = engine.pid
    return pid
