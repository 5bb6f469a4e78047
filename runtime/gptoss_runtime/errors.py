"""The errors that this project raises. The CLI maps them to exit codes, the server to HTTP statuses.

    GptOssError                      exit 1    the root: catch this one
    ├── InvalidRequest               exit 2    an option, prompt or token id is invalid
    │   ├── ContextOverflow          exit 2    prompt and answer do not fit the context length
    │   └── ModelNotFound            exit 2    there is no such model or variant, or it is not on this machine
    ├── ArtifactError                exit 4    the artifact folder is missing, damaged, unsafe, or not an artifact
    ├── BackendError                 exit 6    onnxruntime-genai is missing, too old, or failed
    │   ├── BackendUnavailable       exit 6    the package or execution provider is not installed
    │   ├── EngineDied               exit 6    the engine's process crashed or was killed
    │   ├── ServerUnavailable        exit 6    (sdk) no server answers, or it does not have the model
    │   ├── NumericalError           exit 6    the logits are not finite: an overflow, or damaged weights
    │   └── DeviceError              exit 6    a problem of the graphics adapter
    │       ├── NoAdapter            exit 6    there is no usable adapter, or not the requested one
    │       ├── DriverTooOld         exit 6    the driver does not provide a Direct3D 12 device
    │       └── DeviceLost           exit 6    the adapter was reset or removed while in use
    ├── ResourceError                exit 7    not enough memory or disk space
    │   └── Overloaded               exit 7    all slots and the queue are full
    ├── HubError                     exit 8    the hub is unreachable, refuses, or lacks the file or model
    └── ConversionError              exit 3    (gptoss_convert.errors) the errors of the converter

Every error says what is wrong (``message``) and what to do about it (``remedy``).
"""

from __future__ import annotations

from typing import ClassVar


class GptOssError(Exception):
    """The root of the tree.

    Args:
        message: what is wrong; names the file, option or value.
        remedy: what the user can do about it; shown on a separate line.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}\n{self.remedy}"


class InvalidRequest(GptOssError):
    """An option, prompt or token id is invalid; nothing was generated."""

    exit_code = 2


class ContextOverflow(InvalidRequest):
    """The prompt leaves no room for an answer within the context length."""


class ModelNotFound(InvalidRequest):
    """There is no such model or variant, or it is not on this machine."""


class ArtifactError(GptOssError):
    """The folder is missing, is not an artifact, is damaged, or is not safe to load."""

    exit_code = 4


class BackendError(GptOssError):
    """onnxruntime-genai failed; the message quotes it."""

    exit_code = 6


class BackendUnavailable(BackendError):
    """The requested package or execution provider is not installed."""


class EngineDied(BackendError):
    """The engine's process ended unexpectedly: it was killed, ran out of memory, or crashed in native code."""


class ServerUnavailable(BackendError):
    """No server answers, or it does not have the model, or it did not become ready."""


class NumericalError(BackendError):
    """The model's logits are not finite: it overflowed on this device, or its weights are damaged."""


class DeviceError(BackendError):
    """A problem of the graphics adapter."""


class NoAdapter(DeviceError):
    """There is no adapter that DirectML can use, or not the requested one."""


class DriverTooOld(DeviceError):
    """The adapter's driver does not provide a Direct3D 12 device of the feature level that DirectML needs."""


class DeviceLost(DeviceError):
    """The adapter was reset or removed, or its driver was updated; models on it must be loaded again."""


class ResourceError(GptOssError):
    """There is not enough memory or disk space."""

    exit_code = 7


class Overloaded(ResourceError):
    """All slots and the queue are full; nothing was started.

    Args:
        message: as for ``GptOssError``.
        remedy: as for ``GptOssError``.
        retry_after: seconds after which to retry.
    """

    def __init__(self, message: str, *, remedy: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after = retry_after


class HubError(GptOssError):
    """The hub is unreachable, refuses the request, or lacks the file or model."""

    exit_code = 8
