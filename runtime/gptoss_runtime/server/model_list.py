"""GET /v1/models: the models on this machine, in OpenAI's shape. Knows the catalog; loads nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from gptoss_runtime.server.served_models import ServedModel
from gptoss_runtime.server.services import Services
from gptoss_runtime.server.streams import Json

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """List the models that can be asked."""
    host = Services.of(request).host
    entries = await asyncio.to_thread(host.catalog.entries)
    return Json({"object": "list", "data": [_model(entry, host.context_length(entry)) for entry in entries]})


@router.get("/v1/models/{model:path}")
async def retrieve(request: Request, model: str) -> Response:
    """Describe one model."""
    host = Services.of(request).host
    entry = await asyncio.to_thread(host.catalog.find, model)
    return Json(_model(entry, host.context_length(entry)))


def _model(entry: ServedModel, context_length: int) -> dict[str, Any]:
    return {
        "id": entry.id,
        "object": "model",
        "created": entry.created,
        "owned_by": "openai",
        "context_length": context_length,
        "max_model_len": context_length,
        "target": entry.target,
    }
