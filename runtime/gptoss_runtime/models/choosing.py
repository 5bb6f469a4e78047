"""Chooses the variant of a model that this machine runs best, and explains the choice.

Compares the requirements of variants with this machine's adapters, memory and packages; knows nothing of the hub, and
loads nothing. Targets are tried from the fastest to the slowest; the first one that runs here is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from gptoss_runtime.artifact.manifest import MemoryBudget
from gptoss_runtime.errors import BackendUnavailable, GptOssError, InvalidRequest, ModelNotFound, ResourceError
from gptoss_runtime.machine import adapters, hardware, installed, preflight
from gptoss_runtime.providers import preference

_MIN_CONTEXT = 1024  # tokens; a model with a shorter context is of no use


class Candidate(Protocol):
    """The properties of a variant that the choice depends on."""

    @property
    def target(self) -> str:
        """The target it was converted for."""

    @property
    def provider(self) -> str:
        """The execution provider it was converted for."""

    @property
    def requires(self) -> Mapping[str, str]:
        """Version specifiers of the packages that run it."""

    @property
    def memory(self) -> MemoryBudget | None:
        """Memory needed to run; None: unknown."""


V = TypeVar("V", bound=Candidate)


@dataclass(frozen=True, slots=True)
class Placement:
    """The device that a variant runs on.

    Attributes:
        provider: the execution provider, as ``load_engine`` takes it.
        device: the adapter's index, or None if the provider has no choice of devices.
        context: the longest context length that fits, in tokens; None: unknown.
        text: a description, such as "on the CPU".
    """

    provider: str
    device: int | str | None
    context: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Choice(Generic[V]):
    """The variant to use.

    Attributes:
        variant: the chosen variant.
        placement: the device it runs on.
        reason: the reason for the choice, as a sentence.
        runs: False for a requested variant that this machine cannot run; ``reason`` says why.
        rejected: the targets that would have been preferred, with the reason why each was rejected.
    """

    variant: V
    placement: Placement
    reason: str
    runs: bool = True
    rejected: Mapping[str, str] = field(default_factory=dict)


def choose(
    model: str, variants: Sequence[V], *, target: str | None = None, device: int | str | None = None
) -> Choice[V]:
    """Chooses the variant of a model to use on this machine.

    Args:
        model: its name, for messages.
        variants: the available variants.
        target: use the variant for this target even if this machine cannot run it.
        device: use this adapter, as :func:`gptoss_runtime.machine.adapters.choose_adapter` takes it.

    Raises:
        ModelNotFound: there is no variant for that target, or none at all.
        ResourceError: no variant fits in memory.
        BackendUnavailable: no variant runs here for other reasons.
    """
    if target is not None:
        return _choose_target(model, variants, target, device)
    rejected: dict[str, GptOssError] = {}
    for variant in sorted(variants, key=lambda one: (preference(one.provider), one.target)):
        try:
            placement = find_placement(variant, device)
        except GptOssError as error:
            rejected[variant.target] = error
            continue
        reasons = {name: error.message for name, error in rejected.items()}
        others = "".join(f"; not {name}: {text}" for name, text in reasons.items())
        return Choice(variant, placement, f"{variant.target} runs {placement.text}{others}", rejected=reasons)
    raise _no_variant_error(model, rejected)


def find_placement(variant: Candidate, device: int | str | None = None) -> Placement:
    """Finds the device on which a variant runs on this machine.

    Raises:
        GptOssError: it does not run here; the message says why.
    """
    provider = variant.provider
    if provider == "directml":
        return _find_directml_placement(variant.memory, device)
    if provider != "cpu":
        raise BackendUnavailable(
            f"gptoss cannot check whether {provider} runs here",
            remedy="To use it without the check, name the target: MODEL:TARGET.",
        )
    if device is not None:
        raise InvalidRequest("the CPU is not an adapter", remedy="Omit the device, or use a variant for directml.")
    packages = installed.find_builds()
    installed.require_builds("cpu", packages)
    if unmet := installed.find_unmet(variant.requires, packages):
        raise BackendUnavailable(f"it requires {', '.join(unmet)}", remedy=installed.INSTALL.format("cpu"))
    return _fit(variant.memory, "cpu", None, "on the CPU", hardware.cpu().memory_available)


def _find_directml_placement(memory: MemoryBudget | None, device: int | str | None) -> Placement:
    installed.require_directml()
    adapter = adapters.choose_adapter(adapters.list_adapters(), device)
    return _fit(memory, "directml", adapter.index, f"on {adapter.name}", preflight.available_memory(adapter))


def _fit(memory: MemoryBudget | None, provider: str, device: int | None, text: str, available: int) -> Placement:
    if memory is None:
        return Placement(provider, device, None, text)
    largest = preflight.round_context(memory.largest_context(available))
    smallest = min(_MIN_CONTEXT, memory.context)
    if largest < smallest:
        raise ResourceError(
            f"it needs {memory.at(smallest) / 1e9:.1f} GB {text}, where {available / 1e9:.1f} GB are available",
            remedy="Close other programs, or use a smaller model.",
        )
    context = min(largest, memory.context)
    needed = f"needs {memory.at(context) / 1e9:.1f} GB for {context:,} tokens of context"
    return Placement(provider, device, largest, f"{text} ({needed}, {available / 1e9:.1f} GB available)")


def _choose_target(model: str, variants: Sequence[V], target: str, device: int | str | None) -> Choice[V]:
    variant = next((one for one in variants if one.target == target), None)
    if variant is None:
        available = ", ".join(sorted(one.target for one in variants)) or "none"
        raise ModelNotFound(f"{model} has no variant for {target[:100]!r}", remedy=f"Available variants: {available}.")
    try:
        placement = find_placement(variant, device)
    except GptOssError as error:
        placement = Placement(variant.provider, device, None, "on the requested device")
        return Choice(variant, placement, f"{target} was requested but does not run here: {error.message}", runs=False)
    return Choice(variant, placement, f"{target} was requested; it runs {placement.text}")


def _no_variant_error(model: str, rejected: Mapping[str, GptOssError]) -> GptOssError:
    if not rejected:
        return ModelNotFound(f"{model} has no variants", remedy="Run: gptoss models list")
    text = "; ".join(f"{target}: {error.message}" for target, error in rejected.items())
    remedy = "\n".join(dict.fromkeys(error.remedy for error in rejected.values() if error.remedy))
    memory = all(isinstance(error, ResourceError) for error in rejected.values())
    return (ResourceError if memory else BackendUnavailable)(f"no variant of {model} runs here: {text}", remedy=remedy)
