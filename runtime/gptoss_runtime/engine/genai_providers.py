"""Execution providers in onnxruntime-genai: which artifacts they run, and how a Config selects one.

Gets genai as an argument; imports nothing of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.errors import BackendUnavailable, InvalidRequest
from gptoss_runtime.machine import hardware
from gptoss_runtime.providers import find_provider


def runs_on(made_for: str, provider: str) -> bool:
    """Whether a provider can run artifacts made for another one."""
    return find_provider(made_for).why_not(provider.lower()) is None


def check_provider(artifact: Artifact, provider: str) -> None:
    """Checks that a provider can run an artifact.

    Raises:
        InvalidRequest: it cannot; genai would fail with a misleading message, or misread the weights.
    """
    reason = find_provider(artifact.provider).why_not(provider.lower())
    if reason is not None:
        raise InvalidRequest(
            f"{artifact.path}: {reason.format(provider=provider)}",
            remedy=f"Use --provider {artifact.provider}, or convert the checkpoint for {provider}.",
        )


def suggest_alternative(made_for: str, provider: str) -> str:
    """A sentence for remedies: what to use when this provider fails or is missing; empty for the CPU."""
    if provider.lower() == "cpu":
        return ""
    if runs_on(made_for, "cpu"):
        return "Try --provider cpu."
    return "This artifact does not run on the CPU; for that, use one converted with --target cpu."


def parse_device_index(device: int | str | None) -> int | None:
    """Converts a device option to an index. DirectML's other ways to name an adapter are resolved before.

    Raises:
        InvalidRequest: it is not an index.
    """
    if device is None or (isinstance(device, int) and not isinstance(device, bool) and device >= 0):
        return device
    if isinstance(device, str) and device.isdecimal():
        return int(device)
    raise InvalidRequest(f"device is {str(device)[:80]!r}", remedy="Set device to a whole number of 0 or more.")


def configure_provider(
    genai: ModuleType,
    config: Any,
    *,
    made_for: str,
    provider: str,
    device: int | None,
    threads: int | None,
    vocab_size: int,
) -> None:
    """Makes a genai Config use one execution provider, whatever the artifact's configuration names.

    Args:
        genai: onnxruntime-genai.
        config: a genai Config.
        made_for: the provider that the artifact was converted for, for the error's remedy.
        provider: one of :data:`gptoss_runtime.providers.PROVIDERS`, or another name that genai knows.
        device: the device index.
        threads: intra-op threads; ``None`` means one per physical core on the CPU.
        vocab_size: number of logits per position.

    Raises:
        BackendUnavailable: this build of genai does not have the provider.
    """
    known = find_provider(provider)
    name = known.genai_name
    config.clear_providers()
    if name is not None:
        is_available = getattr(genai, f"is_{name}_available", None)
        if is_available is not None and not is_available():
            raise BackendUnavailable(
                f"this onnxruntime-genai has no {provider} execution provider",
                remedy=f'Install the build that has it: pip install "gptoss-windows[{provider.lower()}]". '
                + suggest_alternative(made_for, provider),
            )
        config.append_provider(name)
        if device is not None:
            config.set_provider_option(name, known.device_option, str(device))
    model: dict[str, Any] = {}
    if name is None or threads is not None:
        model["decoder"] = {"session_options": {"intra_op_num_threads": threads or hardware.cpu().physical_cores}}
    if name == "dml":  # an id that never occurs: after a real one genai's search would append padding (_force_tokens)
        model["eos_token_id"] = vocab_size
    if model:
        config.overlay(json.dumps({"model": model}))


@contextmanager
def redirect_stdout(provider: str) -> Iterator[None]:
    """Redirects stdout to stderr on DirectML, whose build of genai prints while it creates its device."""
    if provider.lower() != "directml":
        yield
        return
    try:
        stdout = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # a program without a console
        yield
        return
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
