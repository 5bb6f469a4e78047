"""Questions for nano over both APIs, and their replies in a form that can be compared.

Each question has a distinct answer, so that an answer sent to the wrong client is detected.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.server.running import PERSON, WEATHER

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
_CITIES = ("Paris", "Oslo", "Rome", "Lima", "Tokyo", "Cairo", "Madrid", "Vienna")
_NAMES = ("Tom", "Anna", "Peter", "Maria", "Rosa", "John")
INVALID: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, {"messages": []}),
    (CHAT, {"messages": [{"role": "user", "content": "hello"}], "temperature": -1}),
    (CHAT, {"messages": [{"role": "user", "content": "hello"}], "n": 10**9}),
    (CHAT, {"messages": [{"role": "nobody", "content": "hello"}]}),
    (CHAT, {"messages": [{"role": "user", "content": "hello"}], "response_format": {"type": "json_schema"}}),
    (RESPONSES, {"input": "hello", "previous_response_id": "resp_nothing"}),
    (RESPONSES, {"input": [{"type": "message", "role": "nobody", "content": "x"}]}),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A request; ``says`` has to occur in its answer."""

    path: str
    body: dict[str, Any]
    says: str


@dataclass(slots=True)
class Reply:
    """A reply, assembled from a stream's events or read from a whole response: texts and calls by choice or item."""

    texts: dict[tuple[int, str], str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    sequence: list[int] = field(default_factory=list)
    tokens: int = 0
    error: dict[str, Any] | None = None
    done: bool = False

    def add(self, index: int, kind: str, text: str | None) -> bool:
        """Appends to a text; returns whether there was anything to append."""
        if text:
            self.texts[index, kind] = self.texts.get((index, kind), "") + text
        return bool(text)

    @property
    def content(self) -> tuple[object, ...]:
        """What has to be equal in two replies to the same question."""
        return (sorted(self.texts.items()), sorted(self.reasons.items()), self.tokens)

    def add_event(self, path: str, event: Any) -> bool:
        """Adds an event of a stream; returns whether it has text."""
        return self._add_chat_event(event) if path == CHAT else self._add_response_event(event)

    def add_whole(self, path: str, whole: dict[str, Any]) -> None:
        """Adds a whole response."""
        self.done = True
        self.ids.add(whole["id"])
        if path == RESPONSES:
            self._end(whole)
            return
        self.tokens = whole["usage"]["completion_tokens"]
        for choice in whole["choices"]:
            self._message(choice["index"], choice["message"])
            self.reasons[choice["index"]] = choice["finish_reason"]

    def _add_chat_event(self, event: Any) -> bool:
        if event == "[DONE]":
            self.done = True
            return False
        if "error" in event:
            self.error = event["error"]
            return False
        self.ids.add(event["id"])
        if event.get("usage"):
            self.tokens = event["usage"]["completion_tokens"]
        has_text = False
        for choice in event["choices"]:
            has_text = self._message(choice["index"], choice["delta"]) or has_text
            if choice["finish_reason"] is not None:
                self.reasons[choice["index"]] = choice["finish_reason"]
        return has_text

    def _message(self, index: int, message: dict[str, Any]) -> bool:
        has_text = [self.add(index, kind, message.get(kind)) for kind in ("reasoning", "content")]
        for call in message.get("tool_calls") or ():
            has_text += [self.add(index, kind, call["function"].get(kind)) for kind in ("name", "arguments")]
        return any(has_text)

    def _add_response_event(self, event: dict[str, Any]) -> bool:
        self.sequence.append(event["sequence_number"])
        kind: str = event["type"]
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self.done = True
            self.ids.add(event["response"]["id"])
            self._end(event["response"])
        elif kind == "response.created":
            self.ids.add(event["response"]["id"])
        elif kind == "error":
            self.error = event
        return kind.endswith(".delta")

    def _end(self, response: dict[str, Any]) -> None:
        self.reasons[0] = response["status"]
        self.tokens = (response["usage"] or {}).get("output_tokens", 0)
        for at, item in enumerate(response["output"]):
            for part in item.get("content") or ():
                self.add(at, item["type"], part["text"])
            self.add(at, "name", item.get("name"))
            self.add(at, "arguments", item.get("arguments"))


def questions(model: str) -> Iterator[Question]:
    """All questions: sums, facts about people as JSON, weather by a tool, several choices, stop strings."""
    for at, (first, second) in enumerate((a, b) for a in (11, 23, 32, 41) for b in (14, 25, 36, 47)):
        text, result = f"What is {first} + {second}?", str(first + second)
        yield _chat(model, text, result)
        yield _response(model, text, result, store=at % 2 == 0)
    for at, (name, city) in enumerate(zip(_NAMES, _CITIES, strict=False)):
        text = f"{name} from {city} is {30 + at}. Answer in JSON with the keys name, age and city."
        form = {"name": "person", "schema": PERSON, "strict": True}
        yield _chat(model, text, city, response_format={"type": "json_schema", "json_schema": form})
        yield _response(model, text, city, text={"format": {"type": "json_schema"} | form})
    for city in _CITIES:
        text = f"What's the weather in {city}?"
        yield _chat(model, text, city, tools=[{"type": "function", "function": WEATHER}])
        yield _response(model, text, city, tools=[{"type": "function"} | WEATHER])
    yield _chat(model, "What is 27 + 45?", "72", n=3)
    yield _chat(model, "What is 27 + 46?", "27 + 46", stop=[" ="])


def _chat(model: str, asked: str, says: str, **more: Any) -> Question:
    messages = [{"role": "user", "content": asked}]
    common = {"model": model, "messages": messages, "temperature": 0, "max_completion_tokens": 200}
    return Question(CHAT, common | more, says)


def _response(model: str, asked: str, says: str, **more: Any) -> Question:
    return Question(
        RESPONSES, {"model": model, "input": asked, "temperature": 0, "max_output_tokens": 200} | more, says
    )


def encode(question: Question, *, stream: bool) -> bytes:
    """The request body of a question."""
    more: dict[str, Any] = {"stream": stream}
    if stream and question.path == CHAT:
        more["stream_options"] = {"include_usage": True}
    return json.dumps(question.body | more).encode()
