"""Converts a turn's events to the Responses API's stream events, and to the response object that they add up to.

Object and events are built from the same items, so they always agree. Knows the API's shapes; knows no routes and no
store.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from gptoss_runtime.chat.conversation import MessageEnd, ReasoningDelta, ToolCall, ToolCallDelta
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.server.errors import HttpProblem
from gptoss_runtime.server.openai.answer_fields import (
    count_cached_tokens,
    format_logprobs,
    format_timings,
    new_call_id,
)
from gptoss_runtime.server.openai.tools import CLIENT_TOOL_TYPES, ToolSet, decode_custom_input
from gptoss_runtime.server.responses.items import Item, ReasoningCopies, encode_reasoning, new_item_id
from gptoss_runtime.server.responses.schemas import Reasoning, ResponseRequest
from gptoss_runtime.server.turn_events import ChoiceEnd, TextDelta, TurnEvent

StreamEvent = dict[str, Any]


def create_response(body: ResponseRequest, model: str) -> dict[str, Any]:
    """Creates the response object before its answer: the request's settings, as they are applied."""
    reasoning = body.reasoning or Reasoning()
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": body.background or False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": reasoning.effort or "medium", "summary": reasoning.summary},
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": (body.text and body.text.format) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [tool for tool in body.tools or () if tool.get("type") in CLIENT_TOOL_TYPES],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": None,
    }


class ResponseWriter:
    """Writes one response: ``start``, ``write`` for each event, then ``finish`` or ``fail``.

    Args:
        response: the initial object; it is completed as events come.
        tools: the request's tools.
        harmony: decodes the tokens of log-probabilities.
        copies: further fields that get the reasoning.
    """

    def __init__(
        self, response: dict[str, Any], tools: ToolSet, harmony: Harmony, copies: ReasoningCopies | None = None
    ) -> None:
        self.response = response
        self._tools = tools
        self._harmony = harmony
        self._copies = copies or ReasoningCopies()
        self._sequence_number = -1
        self._open: _OpenItem | None = None

    def start(self) -> Iterator[StreamEvent]:
        """Writes the events before the first token."""
        yield self._make_response_event("response.created")
        yield self._make_response_event("response.in_progress")

    def write(self, event: TurnEvent) -> Iterator[StreamEvent]:
        """Writes the stream events for one of the turn's events; its end is for ``finish``."""
        match event:
            case ReasoningDelta(text=text):
                yield from self._ensure_open("reasoning")
                yield from self._write_delta("response.reasoning_text.delta", text)
                if self._open is not None and self._copies.summary:
                    address = self._open.summary_address
                    yield self._make_event("response.reasoning_summary_text.delta", **address, delta=text)
            case TextDelta(text=text, preamble=preamble, logprobs=logprobs):
                yield from self._ensure_open("message", phase="commentary" if preamble else "final_answer")
                formatted = format_logprobs(self._harmony, logprobs)
                yield from self._write_delta("response.output_text.delta", text, logprobs=formatted)
            case ToolCallDelta(name=name, text=text):
                yield from self._write_call_delta(name, text)
            case ToolCall(name=name, arguments=arguments):
                yield from self._write_call_delta(name, "")
                if self._open is not None:
                    self._open.text = arguments
                yield from self._close("completed")
            case MessageEnd():
                yield from self._close("completed")
            case ChoiceEnd():
                pass

    def finish(self, end: ChoiceEnd, prompt_tokens: int, now: float) -> Iterator[StreamEvent]:
        """Writes the events of the end.

        Args:
            end: how the turn ended.
            prompt_tokens: tokens of the prompt.
            now: seconds since 1970.
        """
        status = {"length": "incomplete", "cancelled": "cancelled"}.get(end.reason, "completed")
        yield from self._close("completed" if status == "completed" else "incomplete")
        self.response |= {
            "status": status,
            "completed_at": now if status == "completed" else None,
            "usage": _format_usage(prompt_tokens, end),
            "timings": format_timings([end]),
        }
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        yield self._make_response_event("response.completed" if status == "completed" else "response.incomplete")

    def fail(self, problem: HttpProblem, end: ChoiceEnd | None = None, prompt_tokens: int = 0) -> Iterator[StreamEvent]:
        """Writes the events of an engine's failure.

        Args:
            problem: what the client is told.
            end: how far the answer had come; ``None``: there was none.
            prompt_tokens: tokens of the prompt.
        """
        yield from self._close("incomplete")
        if end is not None:
            self.response |= {"usage": _format_usage(prompt_tokens, end), "timings": format_timings([end])}
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": problem.message}}
        yield self._make_event("error", code=problem.code, message=problem.message, param=problem.param)
        yield self._make_response_event("response.failed")

    def _write_call_delta(self, name: str, text: str) -> Iterator[StreamEvent]:
        client_tool = self._tools.find(name)
        if client_tool is None:
            return
        kind = "custom_tool_call" if client_tool.custom else "function_call"
        yield from self._ensure_open(kind, name=client_tool.name, namespace=client_tool.namespace)
        if client_tool.custom and self._open is not None:
            self._open.text += text  # JSON: its text can only be decoded once it is complete
        elif text:
            yield from self._write_delta("response.function_call_arguments.delta", text)

    def _ensure_open(self, kind: str, **fields: Any) -> Iterator[StreamEvent]:
        """Opens an item of that type, after closing one of another type."""
        if self._open is not None and self._open.kind == kind and self._open.phase == fields.get("phase"):
            return
        yield from self._close("completed")
        item = self._open = _OpenItem(kind, len(self.response["output"]), self._copies, **fields)
        self.response["output"].append(item.to_json("in_progress"))
        yield self._make_event(
            "response.output_item.added", output_index=item.output_index, item=item.to_json("in_progress")
        )
        if item.part_type is not None:
            yield self._make_event("response.content_part.added", **item.address, part=item.make_part("", []))
        if kind == "reasoning" and self._copies.summary:
            yield self._make_event(
                "response.reasoning_summary_part.added", **item.summary_address, part=_make_summary_part("")
            )

    def _write_delta(self, event: str, text: str, **fields: Any) -> Iterator[StreamEvent]:
        if self._open is not None and text:
            self._open.text += text
            self._open.logprobs += fields.get("logprobs", [])
            yield self._make_event(event, **self._open.address, delta=text, **fields)

    def _close(self, status: str) -> Iterator[StreamEvent]:
        """Writes the events that end the open item."""
        if self._open is None:
            return
        item, self._open = self._open, None
        yield from self._write_content_done(item)
        done = item.to_json(status)
        self.response["output"][item.output_index] = done
        yield self._make_event("response.output_item.done", output_index=item.output_index, item=done)

    def _write_content_done(self, item: _OpenItem) -> Iterator[StreamEvent]:
        address, text = item.address, item.text
        match item.kind:
            case "reasoning":
                yield self._make_event("response.reasoning_text.done", **address, text=text)
                yield self._make_event("response.content_part.done", **address, part=item.make_part(text, []))
                if self._copies.summary:
                    address, part = item.summary_address, _make_summary_part(text)
                    yield self._make_event("response.reasoning_summary_text.done", **address, text=text)
                    yield self._make_event("response.reasoning_summary_part.done", **address, part=part)
            case "message":
                yield self._make_event("response.output_text.done", **address, text=text, logprobs=item.logprobs)
                yield self._make_event(
                    "response.content_part.done", **address, part=item.make_part(text, item.logprobs)
                )
            case "function_call":
                yield self._make_event(
                    "response.function_call_arguments.done", **address, name=item.name, arguments=text
                )
            case "custom_tool_call":
                decoded = decode_custom_input(text)
                yield self._make_event("response.custom_tool_call_input.delta", **address, delta=decoded)
                yield self._make_event("response.custom_tool_call_input.done", **address, input=decoded)

    def _make_response_event(self, event: str) -> StreamEvent:
        """Makes an event that carries the whole response as it is now."""
        return self._make_event(event, response=self.response | {"output": list(self.response["output"])})

    def _make_event(self, event: str, **fields: Any) -> StreamEvent:
        self._sequence_number += 1
        return {"type": event, "sequence_number": self._sequence_number, **fields}


class _OpenItem:
    """An output item being written.

    Args:
        kind: its type.
        output_index: its index in the response's output.
        copies: further fields that get the reasoning.
        phase: a message's: "commentary" or "final_answer".
        name: a call's tool.
        namespace: the namespace of a call's tool.
    """

    def __init__(
        self,
        kind: str,
        output_index: int,
        copies: ReasoningCopies,
        *,
        phase: str | None = None,
        name: str | None = None,
        namespace: str | None = None,
    ) -> None:
        self.kind = kind
        self.output_index = output_index
        self.id = new_item_id(kind)
        self.phase = phase
        self.name = name
        self.text = ""
        self.logprobs: list[Any] = []
        self._namespace = namespace
        self._copies = copies
        self._call_id = new_call_id()

    @property
    def part_type(self) -> str | None:
        """The type of its only content part, if items of its type have parts."""
        return {"reasoning": "reasoning_text", "message": "output_text"}.get(self.kind)

    @property
    def address(self) -> dict[str, Any]:
        """The fields by which events refer to it, or to its only part."""
        address: dict[str, Any] = {"item_id": self.id, "output_index": self.output_index}
        return address if self.part_type is None else address | {"content_index": 0}

    @property
    def summary_address(self) -> dict[str, Any]:
        """The fields by which events refer to its summary's only part."""
        return {"item_id": self.id, "output_index": self.output_index, "summary_index": 0}

    def make_part(self, text: str, logprobs: list[Any]) -> dict[str, Any]:
        """Makes its only content part."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def to_json(self, status: str) -> Item:
        """Formats the item as it stands in the response; without content while it is in progress."""
        in_progress = status == "in_progress"
        head = {"id": self.id, "type": self.kind, "status": status}
        content = [] if in_progress else [self.make_part(self.text, self.logprobs)]
        if self.kind == "reasoning":
            encrypted = encode_reasoning(self.text) if self._copies.encrypted_content and not in_progress else None
            summary = [_make_summary_part(self.text)] if self._copies.summary and not in_progress else []
            return head | {"summary": summary, "content": content, "encrypted_content": encrypted}
        if self.kind == "message":
            return head | {"role": "assistant", "phase": self.phase, "content": content}
        custom = self.kind == "custom_tool_call"
        text = {"input": decode_custom_input(self.text)} if custom else {"arguments": self.text}
        namespace = {} if self._namespace is None else {"namespace": self._namespace}
        return head | {"call_id": self._call_id, "name": self.name} | text | namespace


def _make_summary_part(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _format_usage(prompt_tokens: int, end: ChoiceEnd) -> dict[str, Any]:
    output_tokens = end.result.usage.new_tokens
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": count_cached_tokens([end]), "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
        "total_tokens": prompt_tokens + output_tokens,
    }
