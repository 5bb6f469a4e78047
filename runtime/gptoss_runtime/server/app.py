"""The app: routes, middleware and error handlers put together. The only module of the core that knows the dialects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response

from gptoss_runtime.errors import GptOssError
from gptoss_runtime.machine import installed
from gptoss_runtime.server import chat_completions, foundry, health, page, responses
from gptoss_runtime.server.connection import ClientDisconnected
from gptoss_runtime.server.errors import BadRequest, HttpError, MethodNotAllowed, NotFound
from gptoss_runtime.server.json_response import make_error_response
from gptoss_runtime.server.metrics import CountRequests, Metrics
from gptoss_runtime.server.model_host import ModelHost
from gptoss_runtime.server.openai import models
from gptoss_runtime.server.request_body import to_bad_request
from gptoss_runtime.server.responses.store import ResponseStore
from gptoss_runtime.server.security import RequestGuard
from gptoss_runtime.server.services import Services
from gptoss_runtime.server.settings import Settings

_CLIENT_CLOSED_REQUEST = 499  # nginx's code; only the metrics see it


def create_app(settings: Settings, host: ModelHost) -> FastAPI:
    """Creates the server's app.

    Args:
        settings: who may call, and the limits.
        host: the models; started and closed with the app.
    """
    metrics = Metrics()
    services = Services(settings, host, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await host.start()
        try:
            yield
        finally:
            for task in list(services.tasks):
                task.cancel()
            await host.close()

    app = FastAPI(
        title="gptoss",
        version=installed.own_version() or "0",
        docs_url=None,  # FastAPI's page loads scripts from other servers
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        middleware=[Middleware(CountRequests, metrics=metrics), Middleware(RequestGuard, settings=settings)],
    )
    app.state.settings = settings
    app.state.services = services
    app.state.response_store = ResponseStore(settings.limits)
    for router in (
        chat_completions.router,
        responses.router,
        models.router,
        foundry.router,
        health.router,
        page.router,
    ):
        app.include_router(router)
    app.add_exception_handler(GptOssError, _handle_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(ClientDisconnected, _handle_disconnect)
    app.add_exception_handler(Exception, _handle_error)
    return app


async def _handle_error(request: Request, error: Exception) -> Response:
    return make_error_response(error)


async def _handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return make_error_response(to_bad_request(error.errors()))


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    """Converts Starlette's own errors, such as unknown paths and methods."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        converted: HttpError = NotFound(f"there is no {where}")
    elif error.status_code == 405:
        converted = MethodNotAllowed(f"{where} is not allowed")
    else:
        converted = BadRequest(str(error.detail))
    response = make_error_response(converted)
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
