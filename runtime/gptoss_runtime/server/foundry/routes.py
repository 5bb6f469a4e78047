"""Foundry Local's routes, for programs written for it: status, catalog, loading and unloading.

Loading and unloading are POSTs. The GETs of Foundry Local's older clients work too, but not if another site's page
could have caused them: an image's address is enough to cause a GET. Knows models; knows nothing of answers.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from gptoss_runtime.providers import find_provider
from gptoss_runtime.server.errors import Forbidden
from gptoss_runtime.server.json_response import JsonResponse
from gptoss_runtime.server.model_host import LoadedModel
from gptoss_runtime.server.security import is_same_site
from gptoss_runtime.server.served_models import ServedModel
from gptoss_runtime.server.services import Services

router = APIRouter(tags=["Foundry Local"])
Ttl = Annotated[
    int | None,
    Query(ge=0, le=10**9, description="Seconds without a request before it is unloaded; 0: never."),
]


@router.get("/openai/status")
async def status(request: Request) -> Response:
    """Report the server's address and the loaded models."""
    services = Services.of(request)
    base = str(request.base_url).rstrip("/")
    return JsonResponse(
        {
            "endpoints": [base],
            "modelDirPath": None,
            "pipeName": None,
            "isAutoRegistrationResolved": True,
            "loadedModels": [loaded.model.id for loaded in services.host.list_loaded()],
            "models": [_describe_loaded(loaded) for loaded in services.host.list_loaded()],  # not in Foundry Local's
        }
    )


@router.get("/foundry/list")
async def catalog(request: Request) -> Response:
    """Describe the models on this machine."""
    models = await asyncio.to_thread(Services.of(request).host.models.list_models)
    return JsonResponse({"models": [_describe(model) for model in models]})


@router.get("/openai/models")
async def cached(request: Request) -> Response:
    """List the names of the models on this machine."""
    models = await asyncio.to_thread(Services.of(request).host.models.list_models)
    return JsonResponse([model.id for model in models])


@router.get("/openai/loadedmodels")
async def loaded_models(request: Request) -> Response:
    """List the names of the loaded models."""
    return JsonResponse([loaded.model.id for loaded in Services.of(request).host.list_loaded()])


@router.post("/openai/load/{name:path}")
async def load(request: Request, name: str, ttl: Ttl = None) -> Response:
    """Load a model."""
    loaded = await Services.of(request).host.load(name, None if ttl is None else ttl or float("inf"))
    return JsonResponse({"model": loaded.model.id, "loaded": True, "provider": loaded.engine.info.provider})


@router.get("/openai/load/{name:path}")
async def load_by_get(request: Request, name: str, ttl: Ttl = None) -> Response:
    """Load a model, for Foundry Local's older clients."""
    _refuse_other_sites(request)
    return await load(request, name, ttl)


@router.post("/openai/unload/{name:path}")
async def unload(request: Request, name: str, force: bool = False) -> Response:
    """Unload a model; with force, even while it answers."""
    await Services.of(request).host.unload(name, force=force)
    return JsonResponse({"model": name, "loaded": False})


@router.get("/openai/unload/{name:path}")
async def unload_by_get(request: Request, name: str, force: bool = False) -> Response:
    """Unload a model, for Foundry Local's older clients."""
    _refuse_other_sites(request)
    return await unload(request, name, force)


def _refuse_other_sites(request: Request) -> None:
    if not is_same_site(request.scope["headers"]):
        raise Forbidden("a page of another site may not do this", remedy="Use POST.")


def _describe(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.id,
        "displayName": model.id,
        "alias": model.id.partition(":")[0],
        "providerType": "Local",
        "uri": "",
        "version": "1",
        "modelType": "ONNX",
        "promptTemplate": None,
        "publisher": "OpenAI",
        "task": "chat-completion",
        "runtime": {"deviceType": find_provider(model.provider).device, "executionProvider": model.target},
        "fileSizeMb": None if model.size is None else model.size >> 20,
        "modelSettings": {"parameters": []},
        "supportsToolCalling": True,
        "license": "apache-2.0",
        "contextLength": model.context_length,
    }


def _describe_loaded(loaded: LoadedModel) -> dict[str, Any]:
    info = loaded.engine.info
    return {
        "id": loaded.model.id,
        "target": info.target,
        "provider": info.provider,
        "device": info.device,
        "context_length": info.context_length,
    }
