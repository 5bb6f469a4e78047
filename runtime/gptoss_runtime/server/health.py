"""GET /health and GET /metrics, for whoever operates the server. Knows no dialect."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from gptoss_runtime.server.json_response import JsonResponse
from gptoss_runtime.server.services import Services

router = APIRouter(tags=["operation"])


@router.get("/health")
async def health(request: Request) -> Response:
    """Report that the server runs; needs no API key and reveals nothing else."""
    return JsonResponse({"status": "ok"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return metrics in Prometheus' text format."""
    services = Services.of(request)
    services.metrics.loaded.set(len(services.host.list_loaded()))
    return Response(services.metrics.render(), media_type=CONTENT_TYPE_LATEST)
