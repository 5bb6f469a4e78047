"""The server's own errors, and the one place that maps every error of the project to HTTP and OpenAI's error object.

    InvalidRequest
    └── HttpError                         a request that the server refuses; has a status, a code and a parameter
        ├── BadRequest              400   a body or parameter that cannot be served
        ├── Unauthorized            401   no API key, or a wrong one
        ├── Forbidden               403   a Host, Origin or site that is not allowed
        ├── NotFound                404   no such path, response or loaded model
        ├── MethodNotAllowed        405   the path exists, but not for this method
        ├── RequestTimeout          408   the body did not arrive in time
        ├── Conflict                409   the target is in use, or already done
        ├── PayloadTooLarge         413   the body exceeds the limit
        └── UnsupportedMediaType    415   the body is not declared as JSON

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


class HttpError(InvalidRequest):
    """A request that the server refuses; subclasses set the status.

    Args:
        message: what is wrong.
        param: the offending parameter, as a path ("messages[0].content").
        code: a machine-readable code; ``None``: the class's default.
        remedy: what to do.
    """

    status: ClassVar[int]
    default_code: ClassVar[str]

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.param = param
        self.code = code or self.default_code


class BadRequest(HttpError):
    """A body or parameter that cannot be served."""

    status = 400
    default_code = "invalid_value"


class Unauthorized(HttpError):
    """No API key, or a wrong one."""

    status = 401
    default_code = "invalid_api_key"


class Forbidden(HttpError):
    """A Host, Origin or site that is not allowed to call."""

    status = 403
    default_code = "forbidden"


class NotFound(HttpError):
    """No such path, response or loaded model."""

    status = 404
    default_code = "not_found"


class MethodNotAllowed(HttpError):
    """The path exists, but not for this method."""

    status = 405
    default_code = "method_not_allowed"


class RequestTimeout(HttpError):
    """The body did not arrive in time."""

    status = 408
    default_code = "request_timeout"


class Conflict(HttpError):
    """The target is in use, or already done."""

    status = 409
    default_code = "busy"


class PayloadTooLarge(HttpError):
    """The body exceeds the limit."""

    status = 413
    default_code = "request_too_large"


class UnsupportedMediaType(HttpError):
    """The body is not declared as JSON."""

    status = 415
    default_code = "unsupported_media_type"


@contextmanager
def attribute_errors_to(param: str) -> Iterator[None]:
    """Names the parameter in an ``InvalidRequest`` that the runtime raises; an ``HttpError`` names its own.

    Raises:
        BadRequest: with ``param``, for an ``InvalidRequest`` raised inside.
    """
    try:
        yield
    except HttpError:
        raise
    except InvalidRequest as error:
        raise BadRequest(error.message, param=param, remedy=error.remedy) from error


@dataclass(frozen=True, slots=True)
class HttpProblem:
    """An error as HTTP reports it.

    Args:
        status: the HTTP status.
        message: what is wrong and what to do.
        type: OpenAI's class of error: "invalid_request_error" or "server_error".
        param: the offending parameter.
        code: a machine-readable code.
        retry_after: seconds until a retry makes sense.
    """

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object, for a response body or a stream event."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that belong to the error."""
        if self.retry_after is not None:
            return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}


def to_problem(error: BaseException) -> HttpProblem:
    """Maps an error to what the client is told; an unexpected one is logged, and its details are withheld."""
    if not isinstance(error, GptOssError):
        log.error("unexpected %s", type(error).__name__, exc_info=error)
        return HttpProblem(
            500, "Something went wrong inside the server; its log says what.", "server_error", None, "internal"
        )
    text = error.message if error.remedy is None else f"{error.message.rstrip('.')}. {error.remedy}"
    retry_after = getattr(error, "retry_after", None)
    match error:
        case HttpError():
            return HttpProblem(error.status, text, "invalid_request_error", error.param, error.code)
        case ContextOverflow():
            return HttpProblem(400, text, "invalid_request_error", None, "context_length_exceeded")
        case ModelNotFound():
            return HttpProblem(404, text, "invalid_request_error", "model", "model_not_found")
        case InvalidRequest():
            return HttpProblem(400, text, "invalid_request_error", None, "invalid_value")
        case ResourceError() if retry_after is not None:
            return HttpProblem(503, text, "server_error", None, "overloaded", retry_after)
        case ResourceError():
            return HttpProblem(503, text, "server_error", None, "insufficient_resources")
        case DeviceLost():
            return HttpProblem(503, text, "server_error", None, "device_lost")
        case NumericalError():
            return HttpProblem(500, text, "server_error", None, "numerical_error")
    return HttpProblem(500, text, "server_error", None, "engine_error")
