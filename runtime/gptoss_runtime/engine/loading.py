"""Loads an artifact into the engine that runs it."""

from __future__ import annotations

from pathlib import Path

from gptoss_runtime.engine.base import Engine


def load_engine(
    path: str | Path,
    *,
    provider: str = "cpu",
    device: int | str | None = None,
    threads: int | None = None,
    context_length: int | None = None,
    slots: int = 1,
    verify: bool = False,
) -> Engine:
    """Loads an artifact.

    Args:
        path: the artifact folder.
        provider: the execution provider: "cpu", "directml", "cuda", "webgpu" or another name that onnxruntime knows.
        device: the device index, for providers that have several. "directml" also accepts an adapter's LUID or name;
            its default is the usable adapter with the most memory.
        threads: intra-op threads; ``None`` means one per physical core.
        context_length: the maximum context length; less uses less memory. ``None`` means the artifact's, or on
            "directml" the longest that fits the adapter's memory.
        slots: number of KV caches to keep. ``engine.slots`` is the actual number: on "directml" at most what the
            adapter's memory holds.
        verify: check every file against the manifest's sha256 first.

    Raises:
        ArtifactError: the folder is missing, damaged or unsafe.
        BackendUnavailable: onnxruntime-genai or the provider is not installed.
        DeviceError: there is no adapter, or it is not usable.
        BackendError: onnxruntime-genai failed to load the model.
        ResourceError: there is not enough memory.
        InvalidRequest: an option is out of range, or the provider cannot run this artifact.
    """
    from gptoss_runtime.artifact.folder import Artifact
    from gptoss_runtime.engine.genai import GenaiEngine

    artifact = Artifact.open(path, verify=verify)
    return GenaiEngine(
        artifact, provider=provider, device=device, threads=threads, context_length=context_length, slots=slots
    )
