"""Reads request bodies as strict JSON within limits, and reports pydantic's findings in the form of OpenAI's errors.

Strict: no NaN or Infinity, no number beyond a float, no duplicate keys, bounded nesting. Unpaired surrogates, which
JavaScript clients produce by cutting strings, become U+FFFD. Knows nothing of what a body means.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from gptoss_runtime.artifact import strict_json
from gptoss_runtime.server.errors import BadRequest, PayloadTooLarge, RequestTimeout
from gptoss_runtime.server.settings import Limits

_THREAD_BYTES = 2**17  # larger bodies are parsed in a thread, so that the event loop is not blocked
_SURROGATES = re.compile(rb"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)")  # group 1: unpaired


class JsonRoute(APIRoute):
    """A route that reads and parses its body with this module, so that errors are this project's, not FastAPI's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI's."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            if self.body_field is None:
                return await handle(request)
            limits: Limits = request.app.state.settings.limits
            body = await read_body(request, limits)
            in_thread = len(body) > _THREAD_BYTES
            value = await asyncio.to_thread(parse_json, body, limits) if in_thread else parse_json(body, limits)
            return await handle(_ParsedRequest(request, body, value))

        return handle_strictly


class _ParsedRequest(Request):
    """A request whose body is already read and parsed, where Starlette would cache both."""

    def __init__(self, request: Request, body: bytes, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._body = body
        self._json = value


async def read_body(request: Request, limits: Limits) -> bytes:
    """Reads the whole body.

    Raises:
        PayloadTooLarge: it exceeds the limit.
        RequestTimeout: it did not arrive in time.
    """
    chunks: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                length += len(chunk)
                if length > limits.body_bytes:
                    raise body_too_large(limits)
                chunks.append(chunk)
    except TimeoutError as error:
        raise RequestTimeout(f"the body did not arrive within {limits.body_seconds:g} s") from error
    return b"".join(chunks)


def body_too_large(limits: Limits) -> PayloadTooLarge:
    """The error for a body that exceeds the limit."""
    return PayloadTooLarge(f"the body has more than {limits.body_bytes:,} bytes", remedy="Send less at once.")


def parse_json(body: bytes, limits: Limits) -> Any:
    """Parses a body as JSON.

    Raises:
        BadRequest: it is not JSON by the rules above.
    """
    if not body.strip():
        raise BadRequest("the body is empty", code="invalid_json", remedy="Send a JSON object.")
    if rb"\ud" in body or rb"\uD" in body:
        body = _SURROGATES.sub(lambda match: rb"\ufffd" if match[1] else match[0], body)
    try:
        value = strict_json.loads(body)
    except UnicodeDecodeError as error:
        raise BadRequest("the body is not UTF-8", code="invalid_json") from error
    except RecursionError as error:
        raise _nested_too_deep(limits.json_depth) from error
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from error
    check_depth(value, limits.json_depth)
    return value


def check_depth(value: Any, limit: int, *, what: str = "the body", param: str | None = None) -> None:
    """Refuses arrays and objects that are nested more than ``limit`` deep.

    Raises:
        BadRequest: they are.
    """
    level = [value]
    for _ in range(limit + 1):
        level = [child for parent in level for child in _get_children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise _nested_too_deep(limit, what, param)


def to_bad_request(findings: Sequence[Any]) -> BadRequest:
    """The first of pydantic's findings in the form of OpenAI's errors."""
    finding = findings[0]
    path = [part for part in finding["loc"] if part not in ("body", "query", "path")]
    param = _format_path(path)
    kind = str(finding["type"])
    if kind == "missing":
        if not path:
            return BadRequest("the body is missing", code="missing_required_parameter", remedy="Send a JSON object.")
        return BadRequest(f"missing required parameter: {param}", param=param, code="missing_required_parameter")
    text = str(finding["msg"]).removeprefix("Value error, ")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return BadRequest(f"{param}: {text}" if param else text, param=param or None, code=code)


def _format_path(parts: Sequence[object]) -> str:
    """Formats ``("messages", 0, "content")`` as ``messages[0].content``, without pydantic's names of union members."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(part)) and part not in ("str", "list"):
            path += f".{part}" if path else str(part)
    return path


def _get_children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _nested_too_deep(limit: int, what: str = "the body", param: str | None = None) -> BadRequest:
    return BadRequest(f"{what} is nested more than {limit} deep", param=param, code="invalid_json")
