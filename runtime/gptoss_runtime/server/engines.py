"""How a server makes its engines: each in a process of its own. Knows targets and providers."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_runtime.engine.base import Engine
from gptoss_runtime.engine_process.engine import ProcessEngine
from gptoss_runtime.server.served_models import ServedModel


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """For every engine that a server makes; see ``ProcessEngine.load``.

    Args:
        provider: the execution provider; ``None``: the one that the artifact was converted for.
        device: which adapter.
        threads: CPU threads.
        context_length: at most this many positions.
        slots: answers that advance at once.
        queue: requests that may wait beside them.
    """

    provider: str | None = None
    device: str | None = None
    threads: int | None = None
    context_length: int | None = None
    slots: int = 4
    queue: int = 64

    def make(self, entry: ServedModel) -> Engine:
        """An engine of a model. Raises as ``load_engine``."""
        return ProcessEngine.load(
            entry.path,
            provider=self.provider or entry.provider,
            device=self.device,
            threads=self.threads,
            context_length=self.context_length,
            slots=self.slots,
            queue=self.queue
            + self.slots,  # who may wait is the host's affair; one that left is still counted for a token
        )
