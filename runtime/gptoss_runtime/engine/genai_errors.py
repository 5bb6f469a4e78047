"""Converts the exceptions of onnxruntime-genai to this project's errors. Knows its messages; imports nothing of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from gptoss_runtime.errors import BackendError, BackendUnavailable, ResourceError
from gptoss_runtime.machine import adapters

_OUT_OF_MEMORY = re.compile(r"allocat|out of memory|bad_alloc", re.IGNORECASE)
_NO_PROVIDER = re.compile(
    r"not been built with|Unknown provider|not (?:available|supported) in this build", re.IGNORECASE
)
_NO_LIBRARY = re.compile(r"interface not available|failed to load (?:shared )?library", re.IGNORECASE)


@contextmanager
def convert_errors(action: str, *, remedy: str) -> Iterator[None]:
    """Converts what genai raises in the body to this project's errors.

    Args:
        action: what the body does, to begin the message with: "loading the model".
        remedy: for errors of which nothing more is known.

    Raises:
        ResourceError: out of memory.
        BackendUnavailable: the provider or a library of it is missing.
        DeviceError: the graphics adapter failed.
        BackendError: any other error.
    """
    try:
        yield
    except MemoryError as error:
        raise _memory_error(action, "not enough memory") from error
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        device_error = adapters.explain_native_error(action, str(error))
        if device_error is not None:
            raise device_error from error
        if _OUT_OF_MEMORY.search(text):
            raise _memory_error(action, text) from error
        if _NO_PROVIDER.search(text):
            raise BackendUnavailable(
                f"{action}: {text}", remedy="Install the build of onnxruntime-genai for this provider."
            ) from error
        if _NO_LIBRARY.search(text):
            raise BackendUnavailable(
                f"{action}: {text}",
                remedy="Install the provider's libraries. For CUDA: NVIDIA's driver, CUDA 13 and cuDNN 9, on the PATH.",
            ) from error
        raise BackendError(f"{action}: {text}", remedy=remedy) from error


def _memory_error(action: str, text: str) -> ResourceError:
    return ResourceError(f"{action}: {text}", remedy="Close other programs, or load with a smaller context_length.")
