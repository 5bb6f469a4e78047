"""What every route uses: the app's settings, models and metrics, and the start of a turn. Knows no dialect."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Self

from starlette.requests import Request

from gptoss_runtime.server.connection import while_connected
from gptoss_runtime.server.metrics import Metrics
from gptoss_runtime.server.model_host import ModelHost
from gptoss_runtime.server.prompt import render_prompt
from gptoss_runtime.server.settings import Settings
from gptoss_runtime.server.turn import Turn
from gptoss_runtime.server.turn_request import TurnRequest


@dataclass(frozen=True, slots=True)
class Services:
    """An app's shared parts.

    Args:
        settings: the server's settings.
        host: the models in memory.
        metrics: the server's metrics.
        tasks: background work in progress.
    """

    settings: Settings
    host: ModelHost
    metrics: Metrics
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @classmethod
    def of(cls, request: Request) -> Self:
        """Those of the app that serves the request."""
        services: Self = request.app.state.services
        return services

    async def start_turn(self, request: Request, model: str | None, asked: TurnRequest) -> Turn:
        """Loads the model if need be and starts to generate.

        Args:
            request: the client's request; if the client disconnects, the turn is cancelled.
            model: the model's name; ``None``: the default.
            asked: what to generate.

        Raises:
            GptOssError: no such model, no free capacity, or a request that cannot be served.
            ClientDisconnected: the client disconnected first.
        """
        lease = await self.host.lease(model)
        turn = Turn(lease, self._with_date(asked), self.metrics)
        await while_connected(request, turn.start(), turn.cancel)
        return turn

    async def count_prompt_tokens(self, model: str | None, asked: TurnRequest) -> int:
        """Counts the tokens that a request's prompt would have. Raises as ``start_turn``."""
        lease = await self.host.lease(model)
        try:
            return len(await asyncio.to_thread(render_prompt, lease.engine, lease.harmony, self._with_date(asked)))
        finally:
            lease.release()

    def run_in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs work that no client waits for; it has to record its own errors."""
        task = asyncio.create_task(work)
        self.tasks.add(task)  # the event loop itself keeps only a weak reference
        task.add_done_callback(self._finish_background)

    def _finish_background(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not log it as lost

    def _with_date(self, asked: TurnRequest) -> TurnRequest:
        return replace(asked, date=datetime.date.today()) if self.settings.tell_date else asked
