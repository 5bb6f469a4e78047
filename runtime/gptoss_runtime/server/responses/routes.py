"""The Responses API: POST /v1/responses and what is kept of it. Knows its routes; the shapes are response_writer's."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from gptoss_runtime.server.bodies import JsonRoute
from gptoss_runtime.server.errors import Busy, RequestRefused, problem
from gptoss_runtime.server.reading import End, TurnEvent
from gptoss_runtime.server.responses.items import Item, resolved
from gptoss_runtime.server.responses.schemas import Reasoning, ResponseRequest
from gptoss_runtime.server.responses.store import ResponseStore, Stored
from gptoss_runtime.server.responses.writer import Event, ReasoningForms, ResponseWriter
from gptoss_runtime.server.services import Services, begin, count
from gptoss_runtime.server.streams import EventStream, Json, event, while_connected
from gptoss_runtime.server.toolbox import KINDS
from gptoss_runtime.server.turn import Turn

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]


@dataclass(slots=True)
class _Answering:
    """A response being made; ``failed`` is what the engine raised in the middle of it."""

    turn: Turn
    writer: ResponseWriter
    stored: Stored | None
    store: ResponseStore
    failed: Exception | None = None

    async def events(self) -> AsyncGenerator[list[Event]]:
        """Its events, as many as there are at a time, to the last; what is kept of it follows them."""
        yield list(self.writer.begin())
        happening = self.turn.events()
        try:
            async for batch in happening:
                yield [made for _, happened in batch for made in self._made(happened)]
        except Exception as error:  # the status may have been sent: the error goes into the object
            self.failed = error
            failed = self.turn.failed
            yield list(self.writer.fail(problem(error), failed and failed[1], self.turn.prompt_tokens))
        finally:
            await happening.aclose()
            self._keep()

    async def stream(self) -> AsyncGenerator[bytes]:
        """Its events as a client gets them."""
        events = self.events()
        try:
            async for batch in events:
                if batch:
                    yield b"".join(event(made, made["type"]) for made in batch)
        finally:
            await events.aclose()

    async def whole(self) -> dict[str, Any]:
        """The response when it is done.

        Raises:
            Exception: what the engine raised.
        """
        async for _ in self.events():
            pass
        if self.failed is not None:
            raise self.failed
        return self.writer.response

    def _made(self, happened: TurnEvent) -> Iterator[Event]:
        if isinstance(happened, End):
            yield from self.writer.finish(happened, self.turn.prompt_tokens, time.time())
        yield from self.writer.write(happened)

    def _keep(self) -> None:
        if self.writer.response["status"] == "in_progress":  # its client left
            self.writer.response["status"] = "cancelled"
        if self.stored is not None and self.writer.response["id"] in self.store:  # else it was deleted meanwhile
            self.stored.cancel = None
            self.store.put(self.stored)


@router.post("/v1/responses")
async def create(request: Request, body: ResponseRequest) -> Response:
    """Answer an input, alone or as the next of a conversation that is kept here."""
    services = Services.of(request)
    limits = services.settings.limits
    body.check()
    before = services.store.before(body.previous_response_id)
    items = resolved(body.items(limits), services.store.item)
    toolbox = body.toolbox(limits)
    turn = await begin(services, request, body.model, body.turn(toolbox, [*before, *items], limits))
    response = _shell(body, turn.model)
    stored = Stored(response, items, before, turn.cancel) if body.store is not False or body.background else None
    if stored is not None:
        services.store.put(stored)
    forms = ReasoningForms(body.with_reasoning_carried, summary=response["reasoning"]["summary"] is not None)
    answering = _Answering(turn, ResponseWriter(response, toolbox, turn.harmony, forms), stored, services.store)
    if body.stream:
        return EventStream(answering.stream(), quiet_seconds=limits.quiet_seconds)
    if body.background:
        services.in_background(answering.whole())
        return Json(response)
    return Json(await while_connected(request, answering.whole(), turn.cancel))


@router.post("/v1/responses/input_tokens")
async def input_tokens(request: Request, body: ResponseRequest) -> Response:
    """Count the tokens of an input without answering it."""
    services = Services.of(request)
    limits = services.settings.limits
    items = resolved(body.items(limits), services.store.item)
    before = services.store.before(body.previous_response_id)
    asked = body.turn(body.toolbox(limits), [*before, *items], limits)
    return Json({"object": "response.input_tokens", "input_tokens": await count(services, body.model, asked)})


@router.get("/v1/responses")
async def list_responses(
    request: Request, after: str | None = None, limit: Limit = 20, order: Order = "desc"
) -> Response:
    """List the responses that are kept."""
    kept = [stored.response for stored in Services.of(request).store.all()]
    return Json(_page(kept if order == "desc" else kept[::-1], after, limit))


@router.get("/v1/responses/{response_id}")
async def retrieve(request: Request, response_id: str, stream: bool = False) -> Response:
    """Give a response that is kept."""
    if stream:
        raise RequestRefused("a response that is kept is not streamed again", param="stream")
    return Json(Services.of(request).store.get(response_id).response)


@router.delete("/v1/responses/{response_id}")
async def delete(request: Request, response_id: str) -> Response:
    """Forget a response."""
    Services.of(request).store.delete(response_id)
    return Json({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items")
async def input_items(
    request: Request, response_id: str, after: str | None = None, limit: Limit = 20, order: Order = "desc"
) -> Response:
    """List the input of a response, the conversation before it included."""
    stored = Services.of(request).store.get(response_id)
    items = [*stored.before, *stored.items]
    return Json(_page(items if order == "asc" else items[::-1], after, limit))


@router.post("/v1/responses/{response_id}/cancel")
async def cancel(request: Request, response_id: str) -> Response:
    """End a response that is being made."""
    stored = Services.of(request).store.get(response_id)
    if stored.cancel is None and stored.response["status"] != "cancelled":
        raise Busy(f"the response is {stored.response['status']} already", code="response_not_cancellable")
    if stored.cancel is not None:
        stored.cancel()
    stored.response["status"] = "cancelled"
    return Json(stored.response)


def _shell(body: ResponseRequest, model: str) -> dict[str, Any]:
    """The response object before its answer: what was asked, as it will be done."""
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
        "tools": [tool for tool in body.tools or () if tool.get("type") in KINDS],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": None,
    }


def _page(items: list[Item], after: str | None, limit: int) -> dict[str, Any]:
    """One page of a list, in OpenAI's shape."""
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise RequestRefused(f"there is no {after[:80]!r} in this list", param="after")
    start = 0 if after is None else ids.index(after) + 1
    data = items[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + limit < len(items),
    }
