"""GET /health and GET /metrics. Knows counts; knows nothing of what is asked."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from gptoss_runtime.server.services import Services
from gptoss_runtime.server.streams import Json

router = APIRouter(tags=["operation"])


@router.get("/health")
async def health(request: Request) -> Response:
    """Say that the server is there; needs no key and says nothing else."""
    return Json({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Give Prometheus its numbers."""
    services = Services.of(request)
    services.metrics.loaded.set(len(services.host.loaded()))
    return Response(services.metrics.page(), media_type=CONTENT_TYPE_LATEST)
