"""GET /v1/models: the models on this machine, in OpenAI's shape. Loads nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gptoss_runtime.server.json_response import JsonResponse
from gptoss_runtime.server.served_models import ServedModel
from gptoss_runtime.server.services import Services

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """List the models on this machine."""
    host = Services.of(request).host
    models = await asyncio.to_thread(host.models.list_models)
    return JsonResponse({"object": "list", "data": [_to_json(model, host.context_length(model)) for model in models]})


@router.get("/v1/models/{model:path}")
async def retrieve(request: Request, model: str) -> Response:
    """Describe one model."""
    host = Services.of(request).host
    found = await asyncio.to_thread(host.models.find, model)
    return JsonResponse(_to_json(found, host.context_length(found)))


def _to_json(model: ServedModel, context_length: int) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "openai",
        "context_length": context_length,
        "max_model_len": context_length,
        "target": model.target,
    }
