"""JSON responses. Knows HTTP; knows nothing of what is sent.

JSON is written in ASCII: a client's unpaired surrogate is escaped, and cannot break the response that repeats it.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from gptoss_runtime.server.errors import to_problem

_encoder = json.JSONEncoder(allow_nan=False, separators=(",", ":"))  # one for all: json.dumps builds one each call


def encode_json(content: Any) -> bytes:
    """Compact ASCII JSON.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return _encoder.encode(content).encode()


class JsonResponse(Response):
    """A JSON response."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See Starlette's ``Response.render``."""
        return encode_json(content)


def make_error_response(error: BaseException) -> JsonResponse:
    """Makes the response to a request that failed: OpenAI's error object with its status and headers."""
    problem = to_problem(error)
    return JsonResponse(problem.body, problem.status, problem.headers)
