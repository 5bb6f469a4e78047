"""What nano is asked under load, by both APIs, and what came of it in a form that can be compared.

Every question has an answer of its own, so that one that went to the wrong client shows. Knows both APIs' shapes.
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
    """A request; ``says`` has to be somewhere in its answer."""

    path: str
    body: dict[str, Any]
    says: str


@dataclass(slots=True)
class Said:
    """An answer, put together from a stream or taken from a whole: texts and calls by choice or item."""

    texts: dict[tuple[int, str], str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    sequence: list[int] = field(default_factory=list)
    tokens: int = 0
    error: dict[str, Any] | None = None
    done: bool = False

    def add(self, index: int, kind: str, text: str | None) -> bool:
        """More of a text; whether there was any."""
        if text:
            self.texts[index, kind] = self.texts.get((index, kind), "") + text
        return bool(text)

    @property
    def same(self) -> tuple[object, ...]:
        """What two answers to one question have in common."""
        return (sorted(self.texts.items()), sorted(self.reasons.items()), self.tokens)

    def hear(self, path: str, event: Any) -> bool:
        """Takes in an event of a stream; whether it says something."""
        return self._hear_chat(event) if path == CHAT else self._hear_response(event)

    def read(self, path: str, whole: dict[str, Any]) -> None:
        """Takes in a whole answer."""
        self.done = True
        self.ids.add(whole["id"])
        if path == RESPONSES:
            self._end(whole)
            return
        self.tokens = whole["usage"]["completion_tokens"]
        for choice in whole["choices"]:
            self._message(choice["index"], choice["message"])
            self.reasons[choice["index"]] = choice["finish_reason"]

    def _hear_chat(self, event: Any) -> bool:
        if event == "[DONE]":
            self.done = True
            return False
        if "error" in event:
            self.error = event["error"]
            return False
        self.ids.add(event["id"])
        if event.get("usage"):
            self.tokens = event["usage"]["completion_tokens"]
        spoke = False
        for choice in event["choices"]:
            spoke = self._message(choice["index"], choice["delta"]) or spoke
            if choice["finish_reason"] is not None:
                self.reasons[choice["index"]] = choice["finish_reason"]
        return spoke

    def _message(self, index: int, message: dict[str, Any]) -> bool:
        spoke = [self.add(index, kind, message.get(kind)) for kind in ("reasoning", "content")]
        for call in message.get("tool_calls") or ():
            spoke += [self.add(index, kind, call["function"].get(kind)) for kind in ("name", "arguments")]
        return any(spoke)

    def _hear_response(self, event: dict[str, Any]) -> bool:
        self.sequence.append(event["sequence_number"])
        kind = event["type"]
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
    """All of them: sums, facts of people as JSON, weather by a tool, several choices, stop strings."""
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


def encoded(question: Question, *, stream: bool) -> bytes:
    """A question as a body."""
    more: dict[str, Any] = {"stream": stream}
    if stream and question.path == CHAT:
        more["stream_options"] = {"include_usage": True}
    return json.dumps(question.body | more).encode()
