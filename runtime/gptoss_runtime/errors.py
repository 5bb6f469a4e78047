"""Every error this project raises on purpose, drawn once; the CLI maps it to exit codes, the server to HTTP.

    GptOssError                      exit 1    the root: catch this
    ├── InvalidRequest               exit 2    an option, prompt or token id that cannot be served
    │   ├── ContextOverflow          exit 2    prompt and answer do not fit the context length
    │   └── ModelNotFound            exit 2    no model or variant of that name, or not on this machine
    ├── ArtifactError                exit 4    the artifact folder is missing, damaged or not one
    ├── BackendError                 exit 6    onnxruntime-genai is missing, too old, or failed
    │   ├── BackendUnavailable       exit 6    the package or execution provider is not installed
    │   ├── EngineDied               exit 6    the engine's process ended while it was needed
    │   ├── ServerUnavailable        exit 6    (sdk) no server answers, or not for that model
    │   ├── NumericalError           exit 6    the model's logits are not finite: an overflow, or damaged weights
    │   └── DeviceError              exit 6    something about the graphics adapter
    │       ├── NoAdapter            exit 6    there is none, or not the one asked for
    │       ├── DriverTooOld         exit 6    it has no Direct3D 12 device to give
    │       └── DeviceLost           exit 6    it was reset or removed while it worked
    ├── ResourceError                exit 7    memory or disk would not suffice
    │   └── Overloaded               exit 7    too many requests wait already
    ├── HubError                     exit 8    the hub cannot be reached, refuses, or has not what was asked for
    └── ConversionError              exit 3    (gptoss_convert.errors) everything the converter raises

Every error says what is wrong (its text) and what to do about it (``remedy``). It knows nothing of where it is shown.
"""

from __future__ import annotations

from typing import ClassVar


class GptOssError(Exception):
    """The root of the tree.

    Args:
        message: what is wrong, naming the file, option or value.
        remedy: what the user can do about it; shown on a line of its own.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}\n{self.remedy}"


class InvalidRequest(GptOssError):
    """An option, a prompt or a token id that cannot be served; nothing was generated."""

    exit_code = 2


class ContextOverflow(InvalidRequest):
    """The prompt leaves no room for an answer in the context length."""


class ModelNotFound(InvalidRequest):
    """There is no model or variant of that name, or it is not on this machine."""


class ArtifactError(GptOssError):
    """The folder is not an artifact, or is damaged, or is not safe to load."""

    exit_code = 4


class BackendError(GptOssError):
    """onnxruntime-genai raised; the text says what it said."""

    exit_code = 6


class BackendUnavailable(BackendError):
    """The package or execution provider asked for is not installed."""


class EngineDied(BackendError):
    """The engine's process ended while it was needed: killed, out of memory, or by a native fault."""


class ServerUnavailable(BackendError):
    """No server answers there, or it does not have the model, or it did not become ready."""


class NumericalError(BackendError):
    """The model gave logits that are not finite: it overflowed on this device, or its weights are damaged."""


class DeviceError(BackendError):
    """Something about the graphics adapter."""


class NoAdapter(DeviceError):
    """There is no adapter that DirectML can use, or not the one that was asked for."""


class DriverTooOld(DeviceError):
    """The adapter's driver gives no Direct3D 12 device of the feature level that DirectML needs."""


class DeviceLost(DeviceError):
    """The adapter was reset or removed, or its driver updated; what was loaded on it is gone."""


class ResourceError(GptOssError):
    """Memory or disk space would not suffice."""

    exit_code = 7


class Overloaded(ResourceError):
    """As many requests as may wait are waiting already; nothing was started.

    Args:
        message: as for ``GptOssError``.
        remedy: as for ``GptOssError``.
        retry_after: seconds after which it makes sense to ask again.
    """

    def __init__(self, message: str, *, remedy: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, remedy=remedy)
        self.retry_after = retry_after


class HubError(GptOssError):
    """The hub cannot be reached, refuses, or does not have what was asked for."""

    exit_code = 8
