"""Foundry Local's own routes, so that what is written for it finds its way: status, catalog, loading, unloading.

What changes anything is a POST. The historic GETs that load and unload are answered too, but not if another site's
page could have caused them: an image's address is enough for a GET. Knows the host; knows nothing of answers.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from gptoss_runtime.server.errors import NotAllowed
from gptoss_runtime.server.host import Loaded
from gptoss_runtime.server.security import from_this_site
from gptoss_runtime.server.served_models import ServedModel
from gptoss_runtime.server.services import Services
from gptoss_runtime.server.streams import Json

router = APIRouter(tags=["Foundry Local"])
Ttl = Annotated[
    int | None, Query(ge=0, le=10**9, description="Seconds without a request until it is unloaded; 0: never.")
]


@router.get("/openai/status")
async def status(request: Request) -> Response:
    """Say where this server is and what it has loaded."""
    services = Services.of(request)
    base = str(request.base_url).rstrip("/")
    return Json(
        {
            "endpoints": [base],
            "modelDirPath": None,
            "pipeName": None,
            "isAutoRegistrationResolved": True,
            "loadedModels": [loaded.entry.id for loaded in services.host.loaded()],
            "models": [_loaded(loaded) for loaded in services.host.loaded()],  # ours: where each one runs
        }
    )


@router.get("/foundry/list")
async def catalog(request: Request) -> Response:
    """List the catalog: what is on this machine."""
    host = Services.of(request).host
    entries = await asyncio.to_thread(host.catalog.entries)
    return Json({"models": [_described(entry) for entry in entries]})


@router.get("/openai/models")
async def cached(request: Request) -> Response:
    """List the models on this machine by name."""
    entries = await asyncio.to_thread(Services.of(request).host.catalog.entries)
    return Json([entry.id for entry in entries])


@router.get("/openai/loadedmodels")
async def loaded_models(request: Request) -> Response:
    """List the models in memory by name."""
    return Json([loaded.entry.id for loaded in Services.of(request).host.loaded()])


@router.post("/openai/load/{name:path}")
async def load(request: Request, name: str, ttl: Ttl = None) -> Response:
    """Load a model."""
    found = await Services.of(request).host.load(name, None if ttl is None else ttl or float("inf"))
    return Json({"model": found.entry.id, "loaded": True, "provider": found.engine.info.provider})


@router.get("/openai/load/{name:path}")
async def load_by_get(request: Request, name: str, ttl: Ttl = None) -> Response:
    """Load a model, as Foundry Local's older clients ask for it."""
    _refuse_other_sites(request)
    return await load(request, name, ttl)


@router.post("/openai/unload/{name:path}")
async def unload(request: Request, name: str, force: bool = False) -> Response:
    """Give a model's memory back; with force, also in the middle of answers."""
    await Services.of(request).host.unload(name, force=force)
    return Json({"model": name, "loaded": False})


@router.get("/openai/unload/{name:path}")
async def unload_by_get(request: Request, name: str, force: bool = False) -> Response:
    """Unload a model, as Foundry Local's older clients ask for it."""
    _refuse_other_sites(request)
    return await unload(request, name, force)


def _refuse_other_sites(request: Request) -> None:
    if not from_this_site(request.scope["headers"]):
        raise NotAllowed("a page of another site may not do this", remedy="Use POST.")


def _described(entry: ServedModel) -> dict[str, Any]:
    gpu = entry.target not in ("cpu", "cpu-int4")
    return {
        "name": entry.id,
        "displayName": entry.id,
        "alias": entry.id.partition(":")[0],
        "providerType": "Local",
        "uri": "",
        "version": "1",
        "modelType": "ONNX",
        "promptTemplate": None,
        "publisher": "OpenAI",
        "task": "chat-completion",
        "runtime": {"deviceType": "GPU" if gpu else "CPU", "executionProvider": entry.target},
        "fileSizeMb": None if entry.size is None else entry.size >> 20,
        "modelSettings": {"parameters": []},
        "supportsToolCalling": True,
        "license": "apache-2.0",
        "contextLength": entry.context_length,
    }


def _loaded(loaded: Loaded) -> dict[str, Any]:
    info = loaded.engine.info
    return {
        "id": loaded.entry.id,
        "target": info.target,
        "provider": info.provider,
        "device": info.device,
        "context_length": info.context_length,
    }
