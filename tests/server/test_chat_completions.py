"""Chat Completions through the openai SDK, unmodified, against a real server over nano."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from gptoss_runtime.chat.harmony import Harmony
from tests.server.recorded import final, serve_recorded
from tests.server.running import MODEL, PERSON, WEATHER, ask

SUM = ask("What is 27 + 45?")
WEATHER_TOOL: Any = {"type": "function", "function": WEATHER}


COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


class Person(BaseModel):
    name: str
    age: int
    city: str


def test_answer_has_reasoning_and_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**SUM)
    [choice] = answer.choices
    assert choice.message.content == "27 + 45 = 72"
    assert choice.finish_reason == "stop"
    assert choice.message.model_extra is not None
    assert "60 + 12 = 72" in choice.message.model_extra["reasoning"]
    assert choice.message.model_extra["reasoning_content"] == choice.message.model_extra["reasoning"]
    usage = answer.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details is not None
    assert 0 < (usage.completion_tokens_details.reasoning_tokens or 0) < usage.completion_tokens
    assert answer.model == MODEL


def test_stream_equals_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**SUM)
    chunks = list(client.chat.completions.create(**SUM, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    thought = "".join((delta.model_extra or {}).get("reasoning", "") for delta in deltas)
    assert thought == (whole.choices[0].message.model_extra or {})["reasoning"]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    last = chunks[-1]
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert (last.model_extra or {})["timings"]["predicted_per_second"] > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_wire_format(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={**SUM, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert not any("usage" in chunk for chunk in chunks)
    assert "timings" in chunks[-1]


def test_truncated_answer_says_so(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**{**SUM, "max_completion_tokens": 5})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    older = client.chat.completions.create(**{**SUM, "max_completion_tokens": None, "max_tokens": 5})
    assert older.choices[0].finish_reason == "length"


def test_repeated_prompt_is_cached(client: openai.OpenAI) -> None:
    client.chat.completions.create(**SUM)
    usage = client.chat.completions.create(**SUM).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_effort_controls_reasoning_length(client: openai.OpenAI) -> None:
    question = ask("Put 52, 17 and 33 in ascending order.")
    counts = {}
    for effort in ("none", "minimal", "low", "medium", "high", "xhigh"):
        usage = client.chat.completions.create(**question, reasoning_effort=effort).usage
        assert usage is not None
        assert usage.completion_tokens_details is not None
        counts[effort] = usage.completion_tokens_details.reasoning_tokens or 0
    assert counts["none"] == counts["minimal"] == counts["low"] < counts["high"] == counts["xhigh"]


@pytest.mark.parametrize("stream", [False, True])
def test_tool_call_and_its_result(client: openai.OpenAI, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": "What's the weather in Paris?"}]
    call = _call(client, stream, **{**ask(""), "messages": messages, "tools": [WEATHER_TOOL]})
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert call["id"].startswith("call_")
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": '{"temperature":21,"condition":"sunny"}'},
    ]
    answer = client.chat.completions.create(**{**ask(""), "messages": messages, "tools": [WEATHER_TOOL]})
    assert answer.choices[0].message.content == "It is 21 degrees and sunny in Paris."
    assert answer.choices[0].finish_reason == "stop"


def _call(client: openai.OpenAI, stream: bool, **body: Any) -> dict[str, Any]:
    """The only call of an answer."""
    if not stream:
        answer = client.chat.completions.create(**body)
        assert answer.choices[0].finish_reason == "tool_calls"
        [call] = answer.choices[0].message.tool_calls or []
        return call.model_dump()
    streamed: dict[str, Any] = {}
    reasons = []
    for chunk in client.chat.completions.create(**body, stream=True):
        [choice] = chunk.choices
        reasons.append(choice.finish_reason)
        for delta in choice.delta.tool_calls or []:
            assert delta.index == 0
            assert delta.function is not None
            if not streamed:
                streamed = {
                    "id": delta.id,
                    "type": "function",
                    "function": {"name": delta.function.name, "arguments": ""},
                }
            streamed["function"]["arguments"] += delta.function.arguments or ""
    assert reasons[-1] == "tool_calls"
    return streamed


def test_tool_choice(client: openai.OpenAI) -> None:
    pick: Any = {"type": "function", "function": {"name": "pick", "parameters": COLOUR, "strict": True}}
    question: dict[str, Any] = {**ask("What is 2 + 2?"), "tools": [WEATHER_TOOL, pick]}
    named = {"type": "function", "function": {"name": "pick"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    for choice in (named, allowed):
        answer = client.chat.completions.create(**question, tool_choice=choice, parallel_tool_calls=False)
        assert answer.choices[0].finish_reason == "tool_calls"
        [call] = answer.choices[0].message.tool_calls or []
        assert json.loads(call.to_dict()["function"]["arguments"])["colour"] in ("red", "blue")  # type: ignore[index]
    asked = {**ask("What's the weather in Paris?"), "tools": [WEATHER_TOOL]}
    answer = client.chat.completions.create(**asked, tool_choice="required")
    assert answer.choices[0].finish_reason == "tool_calls"
    answer = client.chat.completions.create(**asked, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_custom_tool_receives_text(client: openai.OpenAI) -> None:
    tool: Any = {"type": "custom", "custom": {"name": "shell", "description": "Runs a command."}}
    body = {**ask("Run ls."), "tools": [tool], "tool_choice": {"type": "custom", "custom": {"name": "shell"}}}
    answer = client.chat.completions.create(**body)
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "custom"
    assert call.custom.name == "shell"
    assert isinstance(call.custom.input, str)


@pytest.mark.parametrize("stream", [False, True])
def test_json_schema_is_enforced(client: openai.OpenAI, stream: bool) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    body = {**ask("Tell me something."), "response_format": schema}
    if stream:
        chunks = client.chat.completions.create(**body, stream=True)
        content = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    else:
        content = client.chat.completions.create(**body).choices[0].message.content or ""
    assert set(json.loads(content)) == {"name", "age", "city"}


def test_json_object(client: openai.OpenAI) -> None:
    body = {
        **ask("Tom from Oslo is 34. Answer in JSON with the keys name, age and city."),
        "max_completion_tokens": 300,
    }
    content = client.chat.completions.create(**body, response_format={"type": "json_object"}).choices[0].message.content
    assert json.loads(content or "") == {"name": "Tom", "age": 34, "city": "Oslo"}


def test_parsed_output(client: openai.OpenAI) -> None:
    body = ask("Tom from Oslo is 34. Answer in JSON with the keys name, age and city.")
    parsed = client.chat.completions.parse(**body, response_format=Person).choices[0].message.parsed
    assert isinstance(parsed, Person)  # nano was not trained on harmony's schemas, so its values are not checked


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_match_the_text(client: openai.OpenAI, stream: bool) -> None:
    body = {**SUM, "logprobs": True, "top_logprobs": 3}
    if stream:
        chunks = list(client.chat.completions.create(**body, stream=True))
        found = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
        entries = [entry for logprobs in found for entry in logprobs.content or []]
    else:
        logprobs = client.chat.completions.create(**body).choices[0].logprobs
        assert logprobs is not None
        entries = logprobs.content or []
    assert "".join(entry.token for entry in entries) == "27 + 45 = 72"
    for entry in entries:
        assert bytes(entry.bytes or []).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # greedy sampling takes the likeliest
        assert math.exp(entry.logprob) <= 1.0001


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_the_answer_and_are_not_shown(client: openai.OpenAI, stream: bool) -> None:
    body = {**SUM, "stop": ["never", " = 7"]}
    if stream:
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**body, stream=True)]
        content = "".join(choice.delta.content or "" for choice in chunks)
        reason: str | None = chunks[-1].finish_reason
    else:
        choice = client.chat.completions.create(**body).choices[0]
        content, reason = choice.message.content or "", choice.finish_reason
    assert (content, reason) == ("27 + 45", "stop")


def test_partial_stop_string_is_shown(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**SUM, stop="72 apples")
    assert answer.choices[0].message.content == "27 + 45 = 72"


def test_multiple_choices(client: openai.OpenAI) -> None:
    body = {**ask("hello"), "n": 3, "temperature": 1.5, "seed": 7}
    answer = client.chat.completions.create(**body)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert all(choice.finish_reason for choice in answer.choices)
    chunks = list(client.chat.completions.create(**body, stream=True))
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]  # the same seed gives the same choices
    assert sum(chunk.choices[0].finish_reason is not None for chunk in chunks) == 3


def test_sampling_options_reach_the_engine(client: openai.OpenAI) -> None:
    wild: dict[str, Any] = {**ask("hello"), "temperature": 2.0, "max_completion_tokens": 30}
    assert _text(client, **wild, seed=1) == _text(client, **wild, seed=1)
    assert len({_text(client, **wild, seed=seed) for seed in range(4)}) > 1
    greedy = _text(client, **{**wild, "temperature": 0})
    for extra in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        assert _text(client, **{k: v for k, v in wild.items() if k not in extra}, extra_body=extra) == greedy


def test_logit_bias_bans_a_token(client: openai.OpenAI, nano_artifact: Path, vocabulary: Path) -> None:
    [banned] = Harmony.load(nano_artifact / "tokenizer.json", cache=vocabulary).encode("72")
    assert "72" not in _text(client, **SUM, logit_bias={str(banned): -100})


def test_content_parts_and_all_roles(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hello!", "reasoning_content": "A greeting.", "name": "nano"},
        {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "27 + 45?"}]},
    ]
    assert "72" in _text(client, **{**ask(""), "messages": messages})


def test_unknown_fields_are_ignored(client: openai.OpenAI) -> None:
    extra = {"frobnicate": 1, "service_tier": "auto", "store": True, "metadata": {"a": "b"}, "user": "me"}
    assert _text(client, **SUM, extra_body=extra) == "27 + 45 = 72"


def test_input_token_count_matches_usage(client: openai.OpenAI, http: httpx.Client) -> None:
    usage = client.chat.completions.create(**SUM).usage
    assert usage is not None
    counted = http.post("/v1/chat/completions/input_tokens", json=SUM).json()
    assert counted["input_tokens"] == usage.prompt_tokens


def _text(client: openai.OpenAI, **body: Any) -> str:
    return client.chat.completions.create(**body).choices[0].message.content or ""


@pytest.mark.parametrize("tell_date", [True, False])
def test_model_is_told_the_date(nano_artifact: Path, vocabulary: Path, tell_date: bool) -> None:
    before = datetime.date.today()
    with serve_recorded(nano_artifact, vocabulary, [final("Hi")] * 2, tell_date=tell_date) as recording:
        url = f"{recording.url}/v1/chat/completions"
        counted = httpx.post(f"{url}/input_tokens", json=ask("hello"), timeout=60).json()
        answered = httpx.post(url, json=ask("hello"), timeout=60).json()
        prompt = recording.prompts[-1]
    told = [day for day in (before, datetime.date.today()) if f"Current date: {day}" in prompt]
    assert bool(told) == tell_date == ("Current date" in prompt)
    assert counted["input_tokens"] == answered["usage"]["prompt_tokens"]
