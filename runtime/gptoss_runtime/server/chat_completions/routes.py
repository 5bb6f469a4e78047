"""POST /v1/chat/completions, whole or streamed, and its token count."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gptoss_runtime.server.chat_completions.schemas import ChatRequest
from gptoss_runtime.server.chat_completions.writer import ChatWriter
from gptoss_runtime.server.connection import while_connected
from gptoss_runtime.server.json_response import JsonResponse
from gptoss_runtime.server.request_body import JsonRoute
from gptoss_runtime.server.services import Services
from gptoss_runtime.server.sse import DONE, EventStream, encode_event
from gptoss_runtime.server.turn import Turn

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/chat/completions", tags=["OpenAI"])
async def create(request: Request, body: ChatRequest) -> Response:
    """Generate the next message of a conversation."""
    services = Services.of(request)
    limits = services.settings.limits
    tools = body.parse_tool_set(limits)
    turn = await services.start_turn(request, body.model, body.to_turn_request(tools, limits))
    writer = ChatWriter(turn, tools, body)
    if body.stream:
        return EventStream(_stream(turn, writer), keep_alive_seconds=limits.keep_alive_seconds)
    completion = await while_connected(request, _complete(turn, writer), turn.cancel)
    return JsonResponse(completion)


@router.post("/v1/chat/completions/input_tokens", tags=["OpenAI"])
async def input_tokens(request: Request, body: ChatRequest) -> Response:
    """Count the prompt tokens of a conversation without answering it."""
    services = Services.of(request)
    limits = services.settings.limits
    tokens = await services.count_prompt_tokens(body.model, body.to_turn_request(body.parse_tool_set(limits), limits))
    return JsonResponse({"object": "chat.completion.input_tokens", "input_tokens": tokens})


async def _stream(turn: Turn, writer: ChatWriter) -> AsyncGenerator[bytes]:
    events = turn.events()
    try:
        async for batch in events:
            chunks = [chunk for choice, event in batch for chunk in writer.write_chunks(choice, event)]
            if chunks:
                yield b"".join(map(encode_event, chunks))
        if writer.include_usage:
            yield encode_event(writer.write_usage_chunk())
    except Exception as error:  # the status is already sent: the error becomes an event of the stream
        yield b"".join(map(encode_event, writer.write_error_chunks(error)))
    finally:
        await events.aclose()
    yield DONE


async def _complete(turn: Turn, writer: ChatWriter) -> dict[str, Any]:
    async for batch in turn.events():
        for choice, event in batch:
            writer.add(choice, event)
    return writer.write_completion()
