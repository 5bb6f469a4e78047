"""Loads an artifact into the engine that can run it."""

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
    """Opens an artifact and makes it ready to generate.

    Args:
        path: the artifact folder.
        provider: the execution provider: "cpu", "directml", "cuda", "webgpu" or a name onnxruntime knows.
        device: the adapter's index, for providers that have several; "directml" also takes its LUID or name, and
            by default the usable one with the most memory.
        threads: intra-op threads; ``None``: one a physical core.
        context_length: at most this many positions, to spend less memory; ``None``: the artifact's, or on
            "directml" as many as the adapter's memory holds.
        slots: KV caches to keep, each as long as its sequence; ``engine.slots`` says how many there are: on
            "directml" no more than its memory holds.
        verify: check every file against the manifest's sha256 first.

    Raises:
        ArtifactError: the folder is missing, damaged or unsafe.
        BackendUnavailable: onnxruntime-genai or the provider is not installed.
        DeviceError: no adapter, or not a usable one.
        BackendError: it could not load the model.
        ResourceError: there is not enough memory.
        InvalidRequest: an option out of its range.
    """
    from gptoss_runtime.artifact.folder import Artifact
    from gptoss_runtime.engine.genai import GenaiEngine

    artifact = Artifact.open(path, verify=verify)
    return GenaiEngine(
        artifact, provider=provider, device=device, threads=threads, context_length=context_length, slots=slots
    )
