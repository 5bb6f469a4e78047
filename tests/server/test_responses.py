"""The Responses API through the openai SDK, unmodified, and its stored state, against a real server over nano."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from gptoss_runtime.server.responses.store import ResponseStore, StoredResponse
from gptoss_runtime.server.settings import Limits
from tests.server.running import ENDLESS_RESPONSE, MODEL, WEATHER, Running, wait_until

SUM: dict[str, Any] = {"model": MODEL, "input": "What is 27 + 45?", "temperature": 0, "max_output_tokens": 200}
WEATHER_TOOL: Any = {"type": "function", **WEATHER, "strict": False}
PARIS: dict[str, Any] = {**SUM, "input": "What's the weather in Paris?", "tools": [WEATHER_TOOL]}


class Colour(BaseModel):
    dark: bool


def test_answer(client: openai.OpenAI) -> None:
    response = client.responses.create(**SUM)
    assert response.status == "completed"
    assert response.output_text == "27 + 45 = 72"
    assert [item.type for item in response.output] == ["reasoning", "message"]
    reasoning = response.output[0]
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert "60 + 12 = 72" in reasoning.content[0].text
    usage = response.usage
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens


@pytest.mark.parametrize("body", [SUM, PARIS, {**SUM, "max_output_tokens": 20}], ids=["text", "call", "cut"])
def test_stream_adds_up_to_the_response(client: openai.OpenAI, body: dict[str, Any]) -> None:
    events = [event.to_dict() for event in client.responses.create(**body, stream=True)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    final = events[-1]["response"]
    assert kinds[-1] == f"response.{final['status']}"
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == final["output"]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [(item["id"], item["type"]) for item in added] == [(item["id"], item["type"]) for item in done]
    for index, item in enumerate(final["output"]):
        own = [event for event in events if event.get("item_id") == item["id"]]
        assert {event["output_index"] for event in own} == {index}
        deltas = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        assert deltas == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
        starts = Counter(event["type"] for event in own if not event["type"].endswith(".delta"))
        assert set(starts.values()) == {1}
    assert client.responses.retrieve(final["id"]).to_dict()["output"] == final["output"]


def test_sdk_accumulates_a_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(**SUM) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "27 + 45 = 72"


def test_truncated_answer_says_so(client: openai.OpenAI) -> None:
    response = client.responses.create(**{**SUM, "max_output_tokens": 20})
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


def test_empty_input_is_valid(http: httpx.Client) -> None:
    answer = http.post("/v1/responses", json={"model": MODEL, "input": "", "max_output_tokens": 1})
    assert answer.status_code == 200
    assert answer.json()["output"] == []


def test_tool_call_and_its_result(client: openai.OpenAI) -> None:
    first = client.responses.create(**PARIS)
    [call] = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    result = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": '{"temperature":21,"condition":"sunny"}',
    }
    chained = client.responses.create(**{**PARIS, "input": [result]}, previous_response_id=first.id)
    assert chained.output_text == "It is 21 degrees and sunny in Paris."
    said = [{"role": "user", "content": PARIS["input"]}, *[item.to_dict() for item in first.output], result]
    stateless = client.responses.create(**{**PARIS, "input": said}, store=False)
    assert stateless.output_text == chained.output_text


def test_reasoning_round_trips_as_encrypted_content(client: openai.OpenAI) -> None:
    """Without a store some clients return ``encrypted_content`` and nothing else of the reasoning."""
    body: dict[str, Any] = {**PARIS, "store": False, "include": ["reasoning.encrypted_content"]}
    events = [event.to_dict() for event in client.responses.create(**body, stream=True)]
    final: Any = events[-1]["response"]
    reasoning, call = final["output"]
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert added[0]["encrypted_content"] is None
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "{}"}

    def tokens(*carried: dict[str, Any]) -> int:
        said = [{"role": "user", "content": PARIS["input"]}, *carried, call, result]
        return client.responses.input_tokens.count(model=MODEL, tools=[WEATHER_TOOL], input=said).input_tokens  # type: ignore[arg-type]

    bare = {"type": "reasoning", "id": reasoning["id"], "summary": []}
    assert tokens({**bare, "encrypted_content": reasoning["encrypted_content"]}) == tokens(reasoning) > tokens()
    for foreign in ("gAAAAABo", f"{reasoning['encrypted_content']}!", 7):
        assert tokens({**bare, "encrypted_content": foreign}) == tokens()
    assert client.responses.create(**PARIS, store=False).output[0].encrypted_content is None  # type: ignore[union-attr]


def test_reasoning_summary_repeats_the_reasoning(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {**SUM, "reasoning": {"summary": "auto"}}
    events = [event.to_dict() for event in client.responses.create(**body, stream=True)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    of_summary = [event for event in events if "summary_index" in event]
    final: Any = events[-1]["response"]
    [content], [summary] = final["output"][0]["content"], final["output"][0]["summary"]
    assert summary == {"type": "summary_text", "text": content["text"]}
    deltas = [event["delta"] for event in of_summary[1:-2]]
    assert "".join(map(str, deltas)) == summary["text"]
    kinds = [event["type"] for event in (of_summary[0], *of_summary[-2:])]
    assert kinds == [f"response.reasoning_summary_{kind}" for kind in ("part.added", "text.done", "part.done")]
    assert final["reasoning"] == {"effort": "medium", "summary": "auto"}


def test_previous_response_id_continues_the_conversation(client: openai.OpenAI) -> None:
    first = client.responses.create(**{**SUM, "input": "My name is Tom."}, instructions="Be brief.")
    second = client.responses.create(**{**SUM, "input": "hello"}, previous_response_id=first.id)
    items = client.responses.input_items.list(second.id, order="asc").to_dict()["data"]  # type: ignore[index]
    assert [item["type"] for item in items] == ["message", *[item.type for item in first.output], "message"]  # type: ignore[index]
    assert second.previous_response_id == first.id
    page = client.responses.input_items.list(second.id, limit=1)
    assert page.has_more
    assert page.data[0].to_dict()["content"] == [{"type": "input_text", "text": "hello"}]


def test_custom_and_namespaced_tools(client: openai.OpenAI) -> None:
    custom: Any = {"type": "custom", "name": "shell", "description": "Runs a command."}
    spaced: Any = {"type": "namespace", "name": "mail", "description": "", "tools": [{**WEATHER_TOOL, "name": "send"}]}
    elsewhere: Any = [{"type": "web_search"}, {"type": "frobnicate", "anything": [1]}]
    body = {**PARIS, "tools": [custom, spaced, *elsewhere], "max_output_tokens": 60}
    events = list(client.responses.create(**body, tool_choice={"type": "custom", "name": "shell"}, stream=True))
    final: Any = events[-1].to_dict()["response"]
    assert [tool["type"] for tool in final["tools"]] == ["custom", "namespace"]
    [call] = [item for item in final["output"] if item["type"] == "custom_tool_call"]
    assert call["name"] == "shell"
    inputs = [event.to_dict() for event in events if event.type.startswith("response.custom_tool_call_input")]
    assert [event["type"].rpartition(".")[2] for event in inputs] == ["delta", "done"]  # type: ignore[union-attr]
    assert inputs[1]["input"] == call["input"]
    named: Any = {"type": "function", "name": "send", "namespace": "mail"}
    response = client.responses.create(**body, tool_choice=named)
    [sent] = [item for item in response.output if item.type == "function_call"]
    assert (sent.name, sent.namespace) == ("send", "mail")


def test_codex_request_is_accepted(http: httpx.Client) -> None:
    """Roles, tools and fields as `codex exec` sends them."""
    body = {
        **PARIS,
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be careful."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is 27 + 45?"}]},
        ],
        "tools": [
            WEATHER_TOOL,
            {"type": "namespace", "name": "apps", "description": "x", "tools": [{**WEATHER_TOOL, "name": "open"}]},
            {"type": "web_search", "external_web_access": False},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0c1d",
        "client_metadata": {"x": "y"},
    }
    answer = http.post("/v1/responses", json=body)
    assert answer.status_code == 200
    assert answer.text.rstrip().split("\n\n")[-1].startswith("event: response.completed\n")


def test_parsed_output(client: openai.OpenAI) -> None:
    response = client.responses.parse(**{**SUM, "input": "Is black dark?"}, text_format=Colour)
    assert isinstance(response.output_parsed, Colour)


def test_logprobs(client: openai.OpenAI) -> None:
    response = client.responses.create(**SUM, top_logprobs=2, include=["message.output_text.logprobs"])
    part = response.output[-1].to_dict()["content"][0]  # type: ignore[index]
    assert "".join(entry["token"] for entry in part["logprobs"]) == "27 + 45 = 72"  # type: ignore[index]


def test_store_list_and_delete(client: openai.OpenAI, http: httpx.Client) -> None:
    response = client.responses.create(**SUM)
    assert response.id in [kept["id"] for kept in http.get("/v1/responses").json()["data"]]
    client.responses.delete(response.id)
    for path in (response.id, f"{response.id}/input_items"):
        assert http.get(f"/v1/responses/{path}").status_code == 404
    with pytest.raises(openai.BadRequestError, match="is kept here") as caught:
        client.responses.create(**SUM, previous_response_id=response.id)
    assert caught.value.code == "previous_response_not_found"
    unkept = client.responses.create(**SUM, store=False)
    assert http.get(f"/v1/responses/{unkept.id}").status_code == 404


def test_background_response(client: openai.OpenAI) -> None:
    response = client.responses.create(**SUM, background=True)
    assert response.status == "in_progress"
    wait_until(lambda: client.responses.retrieve(response.id).status != "in_progress")
    response = client.responses.retrieve(response.id)
    assert response.output_text == "27 + 45 = 72"
    with pytest.raises(openai.ConflictError):
        client.responses.cancel(response.id)


def test_cancel_background_response(client: openai.OpenAI, server: Running) -> None:
    response = client.responses.create(**ENDLESS_RESPONSE, background=True)
    assert client.responses.cancel(response.id).status == "cancelled"
    wait_until(lambda: server.host.list_loaded()[0].users == 0)
    assert client.responses.retrieve(response.id).status == "cancelled"


def test_input_token_count_matches_usage(client: openai.OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input=SUM["input"])
    usage = client.responses.create(**SUM).usage
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens


def test_truncation_auto_drops_old_turns(client: openai.OpenAI) -> None:
    long: list[Any] = [{"role": "user", "content": "seven " * 3000}, {"role": "assistant", "content": "Yes."}] * 2
    items = [*long, {"role": "user", "content": "What is 27 + 45?"}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{**SUM, "input": items})
    assert caught.value.code == "context_length_exceeded"
    assert client.responses.create(**{**SUM, "input": items}, truncation="auto").output_text == "27 + 45 = 72"


def test_store_is_bounded() -> None:
    store = ResponseStore(Limits(stored_responses=2, stored_bytes=2000))

    def put(name: str, size: int = 0) -> None:
        item = {"id": f"msg_{name}", "type": "message"}
        response = {"id": name, "output": [item], "status": "completed", "created_at": 1, "padding": "x" * size}
        store.put(StoredResponse(response, [], []))

    put("a")
    put("b")
    store.get("a")
    put("c")  # evicts b, the least recently used
    assert ("a" in store, "b" in store, "c" in store) == (True, False, True)
    assert store.find_item("msg_b") is None
    put("d", 1800)  # evicts as many as it has to
    assert [stored.response["id"] for stored in store.list_newest_first()] == ["d"]
    put("e", 5000)  # larger than the store: not kept, and nothing is evicted
    assert [stored.response["id"] for stored in store.list_newest_first()] == ["d"]
