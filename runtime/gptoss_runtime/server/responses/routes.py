"""The Responses API's routes: POST /v1/responses, and the responses that are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from gptoss_runtime.server.connection import while_connected
from gptoss_runtime.server.errors import BadRequest, Conflict
from gptoss_runtime.server.json_response import JsonResponse
from gptoss_runtime.server.request_body import JsonRoute
from gptoss_runtime.server.responses.items import Item, resolve_references
from gptoss_runtime.server.responses.runner import ResponseRunner
from gptoss_runtime.server.responses.schemas import ResponseRequest
from gptoss_runtime.server.responses.store import ResponseStore, StoredResponse
from gptoss_runtime.server.responses.writer import ResponseWriter, create_response
from gptoss_runtime.server.services import Services
from gptoss_runtime.server.sse import EventStream

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]


@router.post("/v1/responses")
async def create(request: Request, body: ResponseRequest) -> Response:
    """Answer an input, alone or as the continuation of a kept response."""
    services, store = Services.of(request), ResponseStore.of(request)
    limits = services.settings.limits
    body.check_supported()
    earlier = store.get_conversation(body.previous_response_id)
    items = resolve_references(body.to_items(limits), store.find_item)
    tools = body.parse_tool_set(limits)
    turn = await services.start_turn(request, body.model, body.to_turn_request(tools, [*earlier, *items], limits))
    response = create_response(body, turn.model)
    stored = None
    if body.store is not False or body.background:
        stored = StoredResponse(response, items, earlier, turn.cancel)
        store.put(stored)
    writer = ResponseWriter(response, tools, turn.harmony, body.reasoning_copies)
    runner = ResponseRunner(turn, writer, stored, store)
    if body.stream:
        return EventStream(runner.stream(), keep_alive_seconds=limits.keep_alive_seconds)
    if body.background:
        services.run_in_background(runner.complete())
        return JsonResponse(response)
    return JsonResponse(await while_connected(request, runner.complete(), turn.cancel))


@router.post("/v1/responses/input_tokens")
async def input_tokens(request: Request, body: ResponseRequest) -> Response:
    """Count the prompt tokens of an input without answering it."""
    services, store = Services.of(request), ResponseStore.of(request)
    limits = services.settings.limits
    items = resolve_references(body.to_items(limits), store.find_item)
    earlier = store.get_conversation(body.previous_response_id)
    asked = body.to_turn_request(body.parse_tool_set(limits), [*earlier, *items], limits)
    tokens = await services.count_prompt_tokens(body.model, asked)
    return JsonResponse({"object": "response.input_tokens", "input_tokens": tokens})


@router.get("/v1/responses")
async def list_responses(
    request: Request, after: str | None = None, limit: Limit = 20, order: Order = "desc"
) -> Response:
    """List the responses that are kept."""
    responses = [stored.response for stored in ResponseStore.of(request).list_newest_first()]
    return JsonResponse(_paginate(responses if order == "desc" else responses[::-1], after, limit))


@router.get("/v1/responses/{response_id}")
async def retrieve(request: Request, response_id: str, stream: bool = False) -> Response:
    """Return a kept response."""
    if stream:
        raise BadRequest("a kept response cannot be streamed again", param="stream")
    return JsonResponse(ResponseStore.of(request).get(response_id).response)


@router.delete("/v1/responses/{response_id}")
async def delete(request: Request, response_id: str) -> Response:
    """Delete a kept response."""
    ResponseStore.of(request).delete(response_id)
    return JsonResponse({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items")
async def input_items(
    request: Request, response_id: str, after: str | None = None, limit: Limit = 20, order: Order = "desc"
) -> Response:
    """List the input of a kept response, including the conversation before it."""
    stored = ResponseStore.of(request).get(response_id)
    items = [*stored.earlier, *stored.items]
    return JsonResponse(_paginate(items if order == "asc" else items[::-1], after, limit))


@router.post("/v1/responses/{response_id}/cancel")
async def cancel(request: Request, response_id: str) -> Response:
    """Cancel a response that is being generated."""
    stored = ResponseStore.of(request).get(response_id)
    if stored.cancel is None and stored.response["status"] != "cancelled":
        raise Conflict(f"the response is {stored.response['status']} already", code="response_not_cancellable")
    if stored.cancel is not None:
        stored.cancel()
    stored.response["status"] = "cancelled"
    return JsonResponse(stored.response)


def _paginate(items: list[Item], after: str | None, limit: int) -> dict[str, Any]:
    """One page of a list, in OpenAI's shape."""
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise BadRequest(f"there is no {after[:80]!r} in this list", param="after")
    start = 0 if after is None else ids.index(after) + 1
    data = items[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": start + limit < len(items),
    }
