"""Checks before a model is loaded on an adapter: which adapter, whether the model fits, and which context length does.

Compares a manifest's memory budget with an adapter's memory; knows nothing of how a model is loaded.
"""

from __future__ import annotations

from gptoss_runtime.artifact.manifest import MemoryBudget
from gptoss_runtime.errors import ResourceError
from gptoss_runtime.machine import installed
from gptoss_runtime.machine.adapters import Adapter, choose_adapter, list_adapters

RESERVE = 600 << 20  # bytes left to the desktop and other programs
CONTEXTS = (8192, 32768, 131072)  # context lengths that gptoss doctor shows
_STEP = 1024  # suggested context lengths are multiples of this


def plan_directml(
    budget: MemoryBudget | None, device: int | str | None, context: int, requested: int | None
) -> tuple[Adapter, int]:
    """Chooses the adapter and the context length for a model on DirectML.

    Args:
        budget: the model's memory budget; ``None``: the artifact has no manifest, and memory is not checked.
        device: the adapter to use, as :func:`gptoss_runtime.machine.adapters.choose_adapter` takes it.
        context: the model's maximum context length, in tokens.
        requested: the context length that the user asked for; ``None``: the longest that fits.

    Returns:
        The adapter and the context length.

    Raises:
        BackendUnavailable: the DirectML builds are not installed, or conflict with others.
        DeviceError: there is no such adapter, or its driver is too old.
        ResourceError: the model does not fit.
    """
    installed.require_directml()
    adapter = choose_adapter(list_adapters(), device)
    length = min(requested or context, context)
    if budget is not None:
        largest = largest_context(budget, adapter)
        if requested is None and largest >= min(_STEP, context):
            length = min(length, largest)
        check_memory(budget, adapter, length)
    return adapter, length


def count_slots(budget: MemoryBudget | None, adapter: Adapter, context: int, requested: int) -> int:
    """Returns how many concurrent generations fit in an adapter's memory, from 1 to ``requested``.

    The weights are shared; everything else in the budget is needed once per generation.

    Args:
        budget: the model's memory budget; ``None``: unknown, which gives 1.
        adapter: where it runs.
        context: context length of each generation, in tokens.
        requested: the upper limit.
    """
    if budget is None:
        return 1
    per_slot = budget.at(context) - budget.weights
    return max(1, min(requested, (available_memory(adapter) - budget.weights) // max(1, per_slot)))


def available_memory(adapter: Adapter) -> int:
    """Returns the bytes a model may use: the adapter's memory less ``RESERVE``, limited by Windows' current budget."""
    free = adapter.memory - RESERVE
    if adapter.budget is not None:
        free = min(free, adapter.budget - (adapter.usage or 0))
    return max(0, free)


def largest_context(budget: MemoryBudget, adapter: Adapter) -> int:
    """Returns the longest context length that fits, rounded by :func:`round_context`; 0 if the weights do not fit."""
    return round_context(budget.largest_context(available_memory(adapter)))


def round_context(context: int) -> int:
    """Rounds a context length down to a multiple of 1,024; below 1,024 it stays as it is."""
    return context // _STEP * _STEP if context >= _STEP else context


def check_memory(budget: MemoryBudget, adapter: Adapter, context: int) -> None:
    """Checks that a model fits on an adapter at a context length.

    Raises:
        ResourceError: it does not; the remedy names the longest context length that fits.
    """
    needed, free = budget.at(context), available_memory(adapter)
    if needed <= free:
        return
    largest = largest_context(budget, adapter)
    remedy = f"Load with context_length={largest} (--context-length {largest}) or less."
    if largest < min(_STEP, context):
        remedy = (
            "Use an adapter with more memory, convert with a smaller preset (--preset smallest), or "
            f"{installed.USE_CPU_ARTIFACT}."
        )
    raise ResourceError(
        f"a context of {context:,} tokens needs {needed / 1e9:.1f} GB, but {adapter.name} has {free / 1e9:.1f} GB "
        f"available of {adapter.memory / 1e9:.1f} GB; the rest is in use or reserved for the desktop",
        remedy=remedy,
    )
