"""What routes share: the app's parts, and the way from a request to a turn or a count. Knows nothing of either API."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from starlette.requests import Request

from gptoss_runtime.server.host import ModelHost
from gptoss_runtime.server.metrics import Metrics
from gptoss_runtime.server.settings import Settings
from gptoss_runtime.server.streams import while_connected
from gptoss_runtime.server.turn import Turn, TurnRequest, prompt

if TYPE_CHECKING:
    from gptoss_runtime.server.responses.store import ResponseStore


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of an app that routes use."""

    settings: Settings
    host: ModelHost
    metrics: Metrics
    store: ResponseStore
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @classmethod
    def of(cls, request: Request) -> Self:
        """Those of the app that a request came to."""
        services: Self = request.app.state.services
        return services

    def dated(self, asked: TurnRequest) -> TurnRequest:
        """The request with today's date, if the model is to be told."""
        return replace(asked, date=datetime.date.today()) if self.settings.tell_date else asked

    def in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs work that no client waits for; what it raises, it has kept itself."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()


async def begin(services: Services, request: Request, model: str | None, asked: TurnRequest) -> Turn:
    """Loads the model if need be and starts to generate.

    Raises:
        GptOssError: no such model, no room, or a request that cannot be served.
        ClientGone: nobody waits any more.
    """
    lease = await services.host.lease(model)
    turn = Turn(lease, services.dated(asked), services.metrics)
    await while_connected(request, turn.start(), turn.cancel)
    return turn


async def count(services: Services, model: str | None, asked: TurnRequest) -> int:
    """The tokens that a request's prompt would have.

    Raises:
        GptOssError: as ``begin``.
    """
    lease = await services.host.lease(model)
    try:
        return len(await asyncio.to_thread(prompt, lease.engine, lease.harmony, services.dated(asked)))
    finally:
        lease.release()
