"""The app: routes, layers and error handlers put together. Knows all the rooms; does nothing itself."""

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
from gptoss_runtime.server import chat_completions, foundry, health, model_list, page, responses
from gptoss_runtime.server.bodies import refusal
from gptoss_runtime.server.errors import MethodRefused, NotThere, RequestRefused, problem
from gptoss_runtime.server.host import ModelHost
from gptoss_runtime.server.metrics import CountRequests, Metrics
from gptoss_runtime.server.responses.store import ResponseStore
from gptoss_runtime.server.security import Guard
from gptoss_runtime.server.services import Services
from gptoss_runtime.server.settings import Settings
from gptoss_runtime.server.streams import ClientGone, failure

_CLIENT_GONE = 499  # nobody sees it but the metrics; nginx's number


def create_app(settings: Settings, host: ModelHost) -> FastAPI:
    """The server's app.

    Args:
        settings: who may call, and how much.
        host: the models; started and closed with the app.
    """
    metrics = Metrics()
    services = Services(settings, host, metrics, ResponseStore(settings.limits))

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
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        middleware=[Middleware(CountRequests, metrics=metrics), Middleware(Guard, settings=settings)],
    )
    app.state.settings = settings
    app.state.services = services
    for router in (
        chat_completions.router,
        responses.router,
        model_list.router,
        foundry.router,
        health.router,
        page.router,
    ):
        app.include_router(router)
    app.add_exception_handler(GptOssError, _project_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientGone, _client_gone)
    app.add_exception_handler(Exception, _unforeseen)
    return app


async def _project_error(request: Request, error: Exception) -> Response:
    return failure(problem(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return failure(problem(refusal(error.errors())))


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 404:
        found: RequestRefused = NotThere(f"there is no {where}")
    elif error.status_code == 405:
        found = MethodRefused(f"{where} is not allowed")
    else:
        found = RequestRefused(str(error.detail))
    answer = failure(problem(found))
    for name, value in (error.headers or {}).items():
        answer.headers[name] = value
    return answer


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _unforeseen(request: Request, error: Exception) -> Response:
    return failure(problem(error))
