"""Which variant of a model this machine runs best, where, and why not another one.

Compares what variants need with the adapters, the memory and the packages that are here; knows nothing of the hub, and
loads nothing. Targets are asked in one order, from the fastest: the first whose device, packages and memory are here is
the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from gptoss_runtime.artifact.folder import provider_of
from gptoss_runtime.artifact.manifest import MemoryBudget
from gptoss_runtime.errors import BackendUnavailable, GptOssError, InvalidRequest, ModelNotFound, ResourceError
from gptoss_runtime.machine import adapters, hardware, installed, preflight

ORDER = ("directml", "cuda", "webgpu", "cpu", "cpu-int4")
_LEAST_CONTEXT = 1024  # positions below which a model is of no use


class Candidate(Protocol):
    """What choosing needs to know of a variant."""

    @property
    def target(self) -> str:
        """What it was converted for."""

    @property
    def requires(self) -> Mapping[str, str]:
        """Packages that run it, with version specifiers."""

    @property
    def memory(self) -> MemoryBudget | None:
        """What it takes to run; None: unknown."""


V = TypeVar("V", bound=Candidate)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a variant would run.

    Attributes:
        provider: the execution provider, as ``load_engine`` takes it.
        device: the adapter's index, or None where there is nothing to choose.
        context: positions that fit at most; None: unknown.
        text: the place in words.
    """

    provider: str
    device: int | str | None
    context: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Choice(Generic[V]):
    """The variant to use.

    Attributes:
        variant: the one.
        place: where it runs.
        reason: why this one, a sentence.
        runs: False for a variant that was forced and that this machine cannot run; ``reason`` says why.
        rejected: why not, by target, for those that would have been preferred.
    """

    variant: V
    place: Place
    reason: str
    runs: bool = True
    rejected: Mapping[str, str] = field(default_factory=dict)


def choose(
    model: str, variants: Sequence[V], *, target: str | None = None, device: int | str | None = None
) -> Choice[V]:
    """The variant of a model to use on this machine.

    Args:
        model: its name, for messages.
        variants: what there is.
        target: use this one, whatever the machine.
        device: use this adapter, as :func:`gptoss_runtime.machine.adapters.choose_adapter` takes it.

    Raises:
        ModelNotFound: there is no variant for that target, or none at all.
        ResourceError: none fits in memory.
        BackendUnavailable: none runs here for other reasons.
    """
    if target is not None:
        return _forced(model, variants, target, device)
    rejected: dict[str, GptOssError] = {}
    for variant in sorted(variants, key=lambda one: _rank(one.target)):
        try:
            place = place_of(variant, device)
        except GptOssError as error:
            rejected[variant.target] = error
            continue
        why_not = {name: error.message for name, error in rejected.items()}
        instead = "".join(f"; not {name}: {text}" for name, text in why_not.items())
        return Choice(variant, place, f"{variant.target} runs {place.text}{instead}", rejected=why_not)
    raise _nothing(model, rejected)


def place_of(variant: Candidate, device: int | str | None = None) -> Place:
    """Where a variant would run here.

    Raises:
        GptOssError: it would not, and why.
    """
    provider = provider_of(variant.target)
    if provider == "directml":
        return _on_directml(variant.memory, device)
    if provider != "cpu":
        raise BackendUnavailable(
            f"gptoss cannot tell whether {provider} runs here", remedy="Name the target to use it all the same."
        )
    if device is not None:
        raise InvalidRequest("the CPU is no adapter", remedy="Leave the device out, or use a variant for directml.")
    packages = installed.find_builds()
    installed.require_builds("cpu", packages)
    if unmet := installed.find_unmet(variant.requires, packages):
        raise BackendUnavailable(f"it asks for {', '.join(unmet)}", remedy=installed.INSTALL.format("cpu"))
    return _fitting(variant.memory, "cpu", None, "on the CPU", hardware.cpu().memory_available)


def _on_directml(memory: MemoryBudget | None, device: int | str | None) -> Place:
    installed.require_directml()
    adapter = adapters.choose_adapter(adapters.list_adapters(), device)
    return _fitting(memory, "directml", adapter.index, f"on {adapter.name}", preflight.available_memory(adapter))


def _fitting(memory: MemoryBudget | None, provider: str, device: int | None, text: str, room: int) -> Place:
    if memory is None:
        return Place(provider, device, None, text)
    most = preflight.round_context(memory.largest_context(room))
    least = min(_LEAST_CONTEXT, memory.context)
    if most < least:
        raise ResourceError(
            f"it needs {memory.at(least) / 1e9:.1f} GB {text}, and {room / 1e9:.1f} GB can be had",
            remedy="Close other programs, or use a smaller model.",
        )
    return Place(provider, device, most, f"{text}, {room / 1e9:.1f} GB free of which it needs {_need(memory, most)}")


def _need(memory: MemoryBudget, most: int) -> str:
    context = min(most, memory.context)
    return f"{memory.at(context) / 1e9:.1f} at {context:,} positions"


def _rank(target: str) -> tuple[int, str]:
    return (ORDER.index(target) if target in ORDER else len(ORDER), target)


def _forced(model: str, variants: Sequence[V], target: str, device: int | str | None) -> Choice[V]:
    variant = next((one for one in variants if one.target == target), None)
    if variant is None:
        there = ", ".join(sorted(one.target for one in variants)) or "none"
        raise ModelNotFound(f"{model} has no variant for {target[:100]!r}", remedy=f"Those it has: {there}.")
    try:
        place = place_of(variant, device)
    except GptOssError as error:
        place = Place(provider_of(target), device, None, "where it was asked for")
        return Choice(variant, place, f"{target} was asked for, though here {error.message}", runs=False)
    return Choice(variant, place, f"{target} was asked for; it runs {place.text}")


def _nothing(model: str, rejected: Mapping[str, GptOssError]) -> GptOssError:
    if not rejected:
        return ModelNotFound(f"{model} has no variants", remedy="See: gptoss models list")
    text = "; ".join(f"{target}: {error.message}" for target, error in rejected.items())
    remedy = "\n".join(dict.fromkeys(error.remedy for error in rejected.values() if error.remedy))
    memory = all(isinstance(error, ResourceError) for error in rejected.values())
    return (ResourceError if memory else BackendUnavailable)(f"no variant of {model} runs here: {text}", remedy=remedy)
