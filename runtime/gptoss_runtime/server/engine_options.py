"""Options for the engines that a server loads, each in a process of its own. Knows execution providers."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_runtime.engine.base import Engine
from gptoss_runtime.engine_process.engine import ProcessEngine
from gptoss_runtime.server.served_models import ServedModel


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options for every engine that a server loads; see ``ProcessEngine.load``.

    Args:
        provider: the execution provider; ``None``: the one that the artifact was converted for.
        device: the graphics adapter.
        threads: CPU threads.
        context_length: maximum context length (less uses less memory).
        slots: answers generated at once.
        queue: requests that may wait besides.
    """

    provider: str | None = None
    device: str | None = None
    threads: int | None = None
    context_length: int | None = None
    slots: int = 4
    queue: int = 64

    def load(self, model: ServedModel) -> Engine:
        """Loads a model's engine. Raises as ``load_engine``."""
        return ProcessEngine.load(
            model.path,
            provider=self.provider or model.provider,
            device=self.device,
            threads=self.threads,
            context_length=self.context_length,
            slots=self.slots,
            # ModelHost enforces the queue limit. The engine counts a cancelled request until its next token, so its
            # own queue needs room for as many more as there are slots.
            queue=self.queue + self.slots,
        )
