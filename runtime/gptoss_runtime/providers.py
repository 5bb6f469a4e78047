"""The execution providers that gptoss knows: the one table of what depends on them, in order of preference.

Imports nothing of this project, so every module and the converter can use it. A provider that is not in the table can
be used by its name in onnxruntime-genai; it comes after all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class ExecutionProvider:
    """An execution provider.

    Attributes:
        name: as given to ``--provider``.
        genai_name: its name in onnxruntime-genai; None: the CPU, which genai uses if no provider is named.
        device: the kind of device it runs on.
        device_option: genai's option that selects an adapter.
        refused_by: the providers that cannot run artifacts made for this one, and why; "*" stands for all others.
    """

    name: str
    genai_name: str | None
    device: Literal["CPU", "GPU"]
    device_option: str = "device_id"
    refused_by: Mapping[str, str] = field(default_factory=dict)

    def why_not(self, other: str) -> str | None:
        """Why another provider cannot run artifacts made for this one; None: it can."""
        if other == self.name:
            return None
        return self.refused_by.get(other, self.refused_by.get("*"))


PROVIDERS: Mapping[str, ExecutionProvider] = {
    provider.name: provider
    for provider in (  # the most preferred first
        ExecutionProvider(
            "directml",
            genai_name="dml",
            device="GPU",
            device_option="device_index",  # read once: a process keeps the adapter of its first model
            refused_by={
                "cpu": "its graph keeps a cache of fixed size, which onnxruntime-genai does not run on the CPU"
            },
        ),
        ExecutionProvider(
            "cuda",
            genai_name="cuda",
            device="GPU",
            # another provider would misread them silently
            refused_by={"*": "its weights are laid out for cuda, which {provider} cannot read"},
        ),
        ExecutionProvider("webgpu", genai_name="webgpu", device="GPU"),
        ExecutionProvider("cpu", genai_name=None, device="CPU"),
    )
}


def find_provider(name: str) -> ExecutionProvider:
    """The provider of that name in any case; one that is not in the table is taken for a GPU's, under genai's name."""
    return PROVIDERS.get(name.lower()) or ExecutionProvider(name, genai_name=name, device="GPU")


def preference(name: str) -> int:
    """A provider's place in the order of preference; 0 is the most preferred."""
    names = list(PROVIDERS)
    return names.index(name) if name in names else len(names)


def default_provider(target: str) -> str:
    """The provider that a target's name begins with: "cpu" for "cpu-int4"."""
    return target.partition("-")[0]
