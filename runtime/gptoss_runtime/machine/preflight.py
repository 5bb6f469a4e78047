"""Before a model is loaded on an adapter: is there one, does it fit, and if not, what would.

Compares a manifest's memory budget with an adapter's memory; knows nothing of how a model is loaded.
"""

from __future__ import annotations

from gptoss_runtime.artifact.manifest import MemoryBudget
from gptoss_runtime.errors import ResourceError
from gptoss_runtime.machine import installed
from gptoss_runtime.machine.adapters import Adapter, adapters, choose

RESERVE = 600 << 20  # bytes left to the desktop and other programs
CONTEXTS = (8192, 32768, 131072)  # what doctor shows
_STEP = 1024  # suggestions are multiples of it


def directml(
    budget: MemoryBudget | None, device: int | str | None, context: int, wished: int | None
) -> tuple[Adapter, int]:
    """Finds the adapter and the context length for a model on DirectML.

    Args:
        budget: the model's, where it has a manifest.
        device: which adapter, as :func:`gptoss_runtime.machine.adapters.choose` takes it.
        context: the longest context of the model.
        wished: the context that the user asked for; ``None``: what fits.

    Returns:
        The adapter and the context length.

    Raises:
        BackendUnavailable: the builds for DirectML are not installed, or not alone.
        DeviceError: there is no such adapter, or its driver is too old.
        ResourceError: the model does not fit.
    """
    installed.require_directml()
    adapter = choose(adapters(), device)
    length = min(wished or context, context)
    if budget is not None:
        most = largest_context(budget, adapter)
        if wished is None and most >= min(_STEP, context):
            length = min(length, most)
        check_memory(budget, adapter, length)
    return adapter, length


def slots(budget: MemoryBudget | None, adapter: Adapter, context: int, wished: int) -> int:
    """How many generations at once an adapter's memory holds: all but the weights counts for each.

    Args:
        budget: the model's; where there is none, one.
        adapter: which.
        context: positions of each.
        wished: at most.
    """
    if budget is None:
        return 1
    each = budget.at(context) - budget.weights
    return max(1, min(wished, (room(adapter) - budget.weights) // max(1, each)))


def room(adapter: Adapter) -> int:
    """Bytes that a model may take on an adapter: all but a reserve, and what Windows grants it now."""
    free = adapter.memory - RESERVE
    if adapter.budget is not None:
        free = min(free, adapter.budget - (adapter.usage or 0))
    return max(0, free)


def largest_context(budget: MemoryBudget, adapter: Adapter) -> int:
    """The longest context that fits, in whole thousands (1,024) from there on; 0 where not even the weights do."""
    return whole(budget.largest_context(room(adapter)))


def whole(context: int) -> int:
    """A context length to suggest: in whole thousands (1,024), below one as it is."""
    return context // _STEP * _STEP if context >= _STEP else context


def check_memory(budget: MemoryBudget, adapter: Adapter, context: int) -> None:
    """Whether a model fits at a context length.

    Raises:
        ResourceError: it does not; the remedy names the longest context that would.
    """
    needed = budget.at(context)
    if needed <= room(adapter):
        return
    most = largest_context(budget, adapter)
    free = room(adapter)
    remedy = f"Load with context_length={most} (--context-length {most}) or less."
    if most < min(_STEP, context):
        remedy = "Use an adapter with more memory, a smaller preset (smallest), or --provider cpu."
    raise ResourceError(
        f"{context:,} positions need {needed / 1e9:.1f} GB, and of the {adapter.memory / 1e9:.1f} GB of {adapter.name} "
        f"{free / 1e9:.1f} can be had: the rest is the desktop's and other programs'",
        remedy=remedy,
    )
