"""Converts a turn's events to Chat Completions' answers: chunks of a stream, or one completion. Knows no routes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss_runtime.chat.conversation import ReasoningDelta, ToolCall, ToolCallDelta
from gptoss_runtime.engine.results import TokenLogprobs
from gptoss_runtime.server.chat_completions.schemas import ChatRequest
from gptoss_runtime.server.errors import to_problem
from gptoss_runtime.server.openai.answer_fields import (
    count_cached_tokens,
    format_logprobs,
    format_timings,
    new_call_id,
)
from gptoss_runtime.server.openai.tools import ToolSet, decode_custom_input
from gptoss_runtime.server.turn import Turn
from gptoss_runtime.server.turn_events import ChoiceEnd, TextDelta, TurnEvent


@dataclass(slots=True)
class _Choice:
    """A choice so far.

    Args:
        started: a stream has announced it.
        call_open: a stream has announced the call that its deltas belong to.
        call_count: calls that a stream has announced.
        end: how it ended.
    """

    started: bool = False
    call_open: bool = False
    call_count: int = 0
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    end: ChoiceEnd | None = None


class ChatWriter:
    """Writes one answer: call ``write_chunks`` for each event of a stream, or ``add`` and then ``write_completion``.

    Args:
        turn: the turn being generated.
        tools: the request's tools.
        body: the request.
    """

    def __init__(self, turn: Turn, tools: ToolSet, body: ChatRequest) -> None:
        options = body.stream_options
        self.include_usage = options is not None and options.include_usage is True
        self._turn = turn
        self._tools = tools
        self._with_logprobs = body.logprobs is True
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": turn.model,
            "system_fingerprint": None,
        }
        self._choices = [_Choice() for _ in range(body.n or 1)]

    def write_chunks(self, index: int, event: TurnEvent) -> list[dict[str, Any]]:
        """Writes the chunks of a stream for one event of the choice ``index``."""
        choice = self._choices[index]
        chunks: list[dict[str, Any]] = []
        if not choice.started:
            choice.started = True
            chunks.append(self._make_chunk(index, {"role": "assistant", "content": ""}))
        if isinstance(event, ChoiceEnd):
            choice.end = event
            chunks.append(self._make_chunk(index, {}, finish_reason=event.reason))
            if not self.include_usage and index + 1 == len(self._choices):
                chunks[-1]["timings"] = format_timings(self._get_ends())
            return chunks
        delta = self._make_delta(choice, event)
        if delta is not None:
            logprobs = self._format_logprobs(event.logprobs) if isinstance(event, TextDelta) else None
            chunks.append(self._make_chunk(index, delta, logprobs=logprobs))
        return chunks

    def write_usage_chunk(self) -> dict[str, Any]:
        """Writes the last chunk of a stream, with the token counts."""
        ends = self._get_ends()
        return self._head | {"choices": [], "usage": self._format_usage(ends), "timings": format_timings(ends)}

    def write_error_chunks(self, error: Exception) -> list[dict[str, Any]]:
        """Writes the end of a stream after an error: the end of the failed choice, the usage, the error."""
        chunks = []
        if self._turn.failed is not None:
            chunks += self.write_chunks(*self._turn.failed)
            if self.include_usage:
                chunks.append(self.write_usage_chunk())
        return [*chunks, to_problem(error).body]

    def add(self, index: int, event: TurnEvent) -> None:
        """Collects one event of the choice ``index`` for ``write_completion``."""
        choice = self._choices[index]
        match event:
            case ReasoningDelta(text=text):
                choice.reasoning.append(text)
            case TextDelta(text=text, logprobs=logprobs):
                choice.content.append(text)
                choice.logprobs += format_logprobs(self._turn.harmony, logprobs)
            case ToolCall():
                choice.calls.append(self._format_call(event))
            case ChoiceEnd():
                choice.end = event
            case _:
                pass

    def write_completion(self) -> dict[str, Any]:
        """Writes the whole answer."""
        ends = self._get_ends()
        return self._head | {
            "choices": [self._format_choice(index, choice) for index, choice in enumerate(self._choices)],
            "usage": self._format_usage(ends),
            "timings": format_timings(ends),
        }

    def _make_delta(self, choice: _Choice, event: TurnEvent) -> dict[str, Any] | None:
        match event:
            case ReasoningDelta(text=text):
                return {"reasoning": text, "reasoning_content": text}
            case TextDelta(text=text):
                return {"content": text}
            case ToolCallDelta(name=name, text=text):
                return self._make_arguments_delta(choice, name, text)
            case ToolCall():
                return self._end_call(choice, event)
        return None

    def _make_arguments_delta(self, choice: _Choice, name: str, text: str) -> dict[str, Any] | None:
        """More of a call's arguments; the first delta announces the call.

        None for a custom tool: its text can only be decoded once its JSON is complete.
        """
        client_tool = self._tools.find(name)
        if client_tool is None or client_tool.custom:
            return None
        if choice.call_open:
            return {"tool_calls": [{"index": choice.call_count - 1, "function": {"arguments": text}}]}
        choice.call_open = True
        return self._announce_call(choice, ToolCall(name, text))

    def _end_call(self, choice: _Choice, call: ToolCall) -> dict[str, Any] | None:
        if choice.call_open:  # its deltas have carried everything
            choice.call_open = False
            return None
        return self._announce_call(choice, call)

    def _announce_call(self, choice: _Choice, call: ToolCall) -> dict[str, Any]:
        choice.call_count += 1
        return {"tool_calls": [{"index": choice.call_count - 1} | self._format_call(call)]}

    def _format_call(self, call: ToolCall) -> dict[str, Any]:
        client_tool, call_id = self._tools.find(call.name), new_call_id()
        name = call.name if client_tool is None else client_tool.name
        if client_tool is not None and client_tool.custom:
            custom = {"name": name, "input": decode_custom_input(call.arguments)}
            return {"id": call_id, "type": "custom", "custom": custom}
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": call.arguments}}

    def _format_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        content, reasoning = "".join(choice.content), "".join(choice.reasoning)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not choice.calls else None,
            "refusal": None,
            "reasoning": reasoning or None,
            "reasoning_content": reasoning or None,
        }
        if choice.calls:
            message["tool_calls"] = choice.calls
        logprobs = {"content": choice.logprobs, "refusal": None} if self._with_logprobs else None
        reason = None if choice.end is None else choice.end.reason
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _make_chunk(
        self, index: int, delta: dict[str, Any], *, finish_reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self.include_usage else {}
        return self._head | {"choices": [choice]} | usage

    def _format_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {"content": format_logprobs(self._turn.harmony, logprobs), "refusal": None}

    def _format_usage(self, ends: Sequence[ChoiceEnd]) -> dict[str, Any]:
        """Token counts; the prompt counts once, however many choices were generated from it."""
        prompt = self._turn.prompt_tokens
        completion = sum(end.result.usage.new_tokens for end in ends)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": count_cached_tokens(ends)},
            "completion_tokens_details": {"reasoning_tokens": sum(end.reasoning_tokens for end in ends)},
        }

    def _get_ends(self) -> list[ChoiceEnd]:
        return [choice.end for choice in self._choices if choice.end is not None]
