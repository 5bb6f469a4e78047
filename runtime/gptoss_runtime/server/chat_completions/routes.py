"""POST /v1/chat/completions, whole or as a stream, and its token count. Knows chat completions' shapes."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gptoss_runtime.chat.conversation import ReasoningDelta, ToolCall, ToolCallDelta
from gptoss_runtime.server.bodies import JsonRoute
from gptoss_runtime.server.chat_completions.schemas import ChatRequest
from gptoss_runtime.server.errors import problem
from gptoss_runtime.server.reading import End, Text, TurnEvent
from gptoss_runtime.server.services import Services, begin, count
from gptoss_runtime.server.streams import DONE, EventStream, Json, event, while_connected
from gptoss_runtime.server.toolbox import Toolbox, input_of, new_call_id
from gptoss_runtime.server.turn import Turn
from gptoss_runtime.server.usage import chat_usage, logprob_entries, timings

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", tags=["OpenAI"])
async def create(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    services = Services.of(request)
    limits = services.settings.limits
    toolbox = body.toolbox(limits)
    turn = await begin(services, request, body.model, body.turn(toolbox, limits))
    writer = Writer(turn, toolbox, body)
    if body.stream:
        return EventStream(_stream(turn, writer), quiet_seconds=limits.quiet_seconds)
    whole = await while_connected(request, _whole(turn, writer), turn.cancel)
    return Json(whole)


@router.post("/v1/chat/completions/input_tokens", tags=["OpenAI"])
async def input_tokens(request: Request, body: ChatRequest) -> Response:
    """Count the tokens of a conversation without answering it."""
    services = Services.of(request)
    limits = services.settings.limits
    tokens = await count(services, body.model, body.turn(body.toolbox(limits), limits))
    return Json({"object": "chat.completion.input_tokens", "input_tokens": tokens})


async def _stream(turn: Turn, writer: Writer) -> AsyncGenerator[bytes]:
    events = turn.events()
    try:
        async for batch in events:
            chunks = [chunk for choice, happened in batch for chunk in writer.chunks(choice, happened)]
            if chunks:
                yield b"".join(map(event, chunks))
        if writer.include_usage:
            yield event(writer.usage_chunk())
    except Exception as error:  # the status has been sent: the error goes into the stream
        yield b"".join(map(event, writer.failed(error)))
    finally:
        await events.aclose()
    yield DONE


async def _whole(turn: Turn, writer: Writer) -> dict[str, Any]:
    async for batch in turn.events():
        for choice, happened in batch:
            writer.add(choice, happened)
    return writer.completion()


class Writer:
    """Writes a turn's events as chunks of a stream, or collects them for one completion.

    Args:
        turn: what is being answered.
        toolbox: the request's tools.
        body: the request.
    """

    def __init__(self, turn: Turn, toolbox: Toolbox, body: ChatRequest) -> None:
        options = body.stream_options
        self.include_usage = options is not None and options.include_usage is True
        self._turn = turn
        self._toolbox = toolbox
        self._with_logprobs = body.logprobs is True
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": turn.model,
            "system_fingerprint": None,
        }
        self._choices = [_Choice() for _ in range(body.n or 1)]

    def chunks(self, choice: int, happened: TurnEvent) -> list[dict[str, Any]]:
        """What a stream says of one event."""
        state = self._choices[choice]
        said: list[dict[str, Any]] = []
        if not state.begun:
            state.begun = True
            said.append(self._chunk(choice, {"role": "assistant", "content": ""}))
        if isinstance(happened, End):
            state.end = happened
            said.append(self._chunk(choice, {}, finish_reason=happened.reason))
            if not self.include_usage and choice + 1 == len(self._choices):
                said[-1]["timings"] = timings(self._ends())
            return said
        delta = self._delta(state, happened)
        if delta is not None:
            logprobs = self._logprobs(happened.logprobs) if isinstance(happened, Text) else None
            said.append(self._chunk(choice, delta, logprobs=logprobs))
        return said

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk, with the counts."""
        ends = self._ends()
        usage = chat_usage(self._turn.prompt_tokens, ends)
        return self._head | {"choices": [], "usage": usage, "timings": timings(ends)}

    def failed(self, error: Exception) -> list[dict[str, Any]]:
        """What a stream says of an error: how the choice ended in which the engine failed, the counts, the error."""
        said = []
        if self._turn.failed is not None:
            said += self.chunks(*self._turn.failed)
            if self.include_usage:
                said.append(self.usage_chunk())
        return [*said, problem(error).body]

    def add(self, choice: int, happened: TurnEvent) -> None:
        """Collects one event."""
        state = self._choices[choice]
        match happened:
            case ReasoningDelta(text=text):
                state.reasoning.append(text)
            case Text(text=text, logprobs=logprobs):
                state.content.append(text)
                state.logprobs += logprob_entries(self._turn.harmony, logprobs)
            case ToolCall():
                state.calls.append(self._call(happened))
            case End():
                state.end = happened
            case _:
                pass

    def completion(self) -> dict[str, Any]:
        """The whole answer."""
        ends = self._ends()
        return self._head | {
            "choices": [self._finished(index, state) for index, state in enumerate(self._choices)],
            "usage": chat_usage(self._turn.prompt_tokens, ends),
            "timings": timings(ends),
        }

    def _delta(self, state: _Choice, happened: TurnEvent) -> dict[str, Any] | None:
        match happened:
            case ReasoningDelta(text=text):
                return {"reasoning": text, "reasoning_content": text}
            case Text(text=text):
                return {"content": text}
            case ToolCallDelta(name=name, text=text):
                return self._call_delta(state, name, text)
            case ToolCall(name=name, arguments=arguments):
                return self._call_end(state, name, arguments)
        return None

    def _call_delta(self, state: _Choice, name: str, text: str) -> dict[str, Any] | None:
        """More of a call's arguments, its head first; a custom tool's text comes at the end, out of its JSON."""
        offer = self._toolbox.offer(name)
        if offer is None or offer.custom:
            return None
        if state.open_call:
            return {"tool_calls": [{"index": state.call_count - 1, "function": {"arguments": text}}]}
        state.open_call = True
        return self._call_begun(state, ToolCall(name, text))

    def _call_end(self, state: _Choice, name: str, arguments: str) -> dict[str, Any] | None:
        if state.open_call:
            state.open_call = False
            return None
        return self._call_begun(state, ToolCall(name, arguments))

    def _call_begun(self, state: _Choice, call: ToolCall) -> dict[str, Any]:
        state.call_count += 1
        return {"tool_calls": [{"index": state.call_count - 1} | self._call(call)]}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        offer, call_id = self._toolbox.offer(call.name), new_call_id()
        name = call.name if offer is None else offer.name
        if offer is not None and offer.custom:
            return {"id": call_id, "type": "custom", "custom": {"name": name, "input": input_of(call.arguments)}}
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": call.arguments}}

    def _finished(self, index: int, state: _Choice) -> dict[str, Any]:
        content, reasoning = "".join(state.content), "".join(state.reasoning)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not state.calls else None,
            "refusal": None,
            "reasoning": reasoning or None,
            "reasoning_content": reasoning or None,
        }
        if state.calls:
            message["tool_calls"] = state.calls
        logprobs = {"content": state.logprobs, "refusal": None} if self._with_logprobs else None
        reason = None if state.end is None else state.end.reason
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _chunk(
        self, choice: int, delta: dict[str, Any], *, finish_reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        chosen = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self.include_usage else {}
        return self._head | {"choices": [chosen]} | usage

    def _logprobs(self, entries: Any) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {"content": logprob_entries(self._turn.harmony, entries), "refusal": None}

    def _ends(self) -> list[End]:
        return [state.end for state in self._choices if state.end is not None]


class _Choice:
    """One choice so far."""

    def __init__(self) -> None:
        self.begun = False
        self.open_call = False
        self.call_count = 0
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.end: End | None = None
