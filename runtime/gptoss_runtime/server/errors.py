"""From this project's errors to HTTP and OpenAI's error object, in one place; and the errors that only a server has.

    InvalidRequest
    └── RequestRefused          400    with the parameter and a code, as OpenAI's clients know them
        ├── KeyRefused          401    no API key, or not the right one
        ├── NotAllowed          403    a Host, Origin or site that may not call
        ├── NotThere            404    a path, model or response that is not there
        ├── MethodRefused       405    a path that is there, for other methods
        ├── TooSlow             408    a body that did not arrive
        ├── Busy                409    something is in the middle of what it would lose
        ├── TooLarge            413    a body over the limit
        └── NotJson             415    a body that is not declared as JSON

Knows nothing of routes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from gptoss_runtime.errors import (
    ContextOverflow,
    DeviceLost,
    GptOssError,
    InvalidRequest,
    ModelNotFound,
    NumericalError,
    ResourceError,
)

log = logging.getLogger("gptoss.server")


class RequestRefused(InvalidRequest):
    """A request that cannot be served.

    Args:
        message: what is wrong.
        param: the parameter it is about, written as a path ("messages[0].content").
        code: a word for programs.
        remedy: what to do.
    """

    status: ClassVar[int] = 400
    default_code: ClassVar[str | None] = "invalid_value"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.param = param
        self.code = code or self.default_code


class KeyRefused(RequestRefused):
    """No API key, or not the right one."""

    status = 401
    default_code = "invalid_api_key"


class NotAllowed(RequestRefused):
    """A Host, Origin or site that may not call."""

    status = 403
    default_code = "forbidden"


class NotThere(RequestRefused):
    """A path, model or response that is not there."""

    status = 404
    default_code = "not_found"


class MethodRefused(RequestRefused):
    """A path that is there, for other methods."""

    status = 405
    default_code = "method_not_allowed"


class TooSlow(RequestRefused):
    """A body that did not arrive in time."""

    status = 408
    default_code = "request_timeout"


class Busy(RequestRefused):
    """Something is in the middle of what this request would take from it."""

    status = 409
    default_code = "busy"


class TooLarge(RequestRefused):
    """A body over the limit."""

    status = 413
    default_code = "request_too_large"


class NotJson(RequestRefused):
    """A body that is not declared as JSON."""

    status = 415
    default_code = "unsupported_media_type"


@contextmanager
def about(param: str) -> Iterator[None]:
    """Says of which parameter the runtime refuses something; what is refused here says it already."""
    try:
        yield
    except RequestRefused:
        raise
    except InvalidRequest as error:
        raise RequestRefused(error.message, param=param, remedy=error.remedy) from error


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as HTTP has it: ``body`` is OpenAI's error object."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object, as it stands in a response or an event."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to it."""
        if self.retry_after is not None:
            return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


def problem(error: BaseException) -> Problem:
    """What a client is told of an error; what this project did not foresee is logged and not told."""
    if not isinstance(error, GptOssError):
        log.error("unforeseen %s", type(error).__name__, exc_info=error)
        return Problem(
            500, "Something went wrong inside the server; its log says what.", "server_error", None, "internal"
        )
    text = error.message if error.remedy is None else f"{error.message.rstrip('.')}. {error.remedy}"
    retry_after = getattr(error, "retry_after", None)
    match error:
        case RequestRefused():
            return Problem(error.status, text, "invalid_request_error", error.param, error.code)
        case ContextOverflow():
            return Problem(400, text, "invalid_request_error", None, "context_length_exceeded")
        case ModelNotFound():
            return Problem(404, text, "invalid_request_error", "model", "model_not_found")
        case InvalidRequest():
            return Problem(400, text, "invalid_request_error", None, "invalid_value")
        case ResourceError() if retry_after is not None:
            return Problem(503, text, "server_error", None, "overloaded", retry_after)
        case ResourceError():
            return Problem(503, text, "server_error", None, "insufficient_resources")
        case DeviceLost():
            return Problem(503, text, "server_error", None, "device_lost")
        case NumericalError():
            return Problem(500, text, "server_error", None, "numerical_error")
    return Problem(500, text, "server_error", None, "engine_error")
