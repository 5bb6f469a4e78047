"""Request bodies: strict JSON within bounds, and pydantic's findings in OpenAI's words.

JSON here is JSON: no NaN or Infinity, no number too large to be one, no key twice, no nesting without end. Halves of
surrogate pairs, which JavaScript clients make by cutting strings, become U+FFFD. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from gptoss_runtime.artifact import strict_json
from gptoss_runtime.server.errors import RequestRefused, TooLarge, TooSlow
from gptoss_runtime.server.settings import Limits

_ASIDE = 2**17  # bodies over this many bytes are parsed in a thread
_SURROGATES = re.compile(rb"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)")


class JsonRoute(APIRoute):
    """A route whose body is read and parsed by this module, so that it raises this project's errors."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI's."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if self.body_field is None:
                return await handle(request)
            limits: Limits = request.app.state.settings.limits
            body = await read(request, limits)
            parsed = await asyncio.to_thread(parse, body, limits) if len(body) > _ASIDE else parse(body, limits)
            return await handle(_Parsed(request, body, parsed))

        return strict


class _Parsed(Request):
    """A request whose body was read and parsed before."""

    def __init__(self, request: Request, body: bytes, parsed: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._body = body
        self._json = parsed


async def read(request: Request, limits: Limits) -> bytes:
    """The whole body.

    Raises:
        TooLarge: it is longer than the limit.
        TooSlow: it did not arrive in time.
    """
    pieces: list[bytes] = []
    length = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in request.stream():
                length += len(piece)
                if length > limits.body_bytes:
                    raise too_large(limits)
                pieces.append(piece)
    except TimeoutError as error:
        raise TooSlow(f"the body did not arrive within {limits.body_seconds:g} s") from error
    return b"".join(pieces)


def too_large(limits: Limits) -> TooLarge:
    """The error of a body over the limit."""
    return TooLarge(f"the body has more than {limits.body_bytes:,} bytes", remedy="Send less at once.")


def parse(body: bytes, limits: Limits) -> Any:
    """The JSON value that a body holds.

    Raises:
        RequestRefused: it is not JSON by the rules above.
    """
    if not body.strip():
        raise RequestRefused("the body is empty", code="invalid_json", remedy="Send a JSON object.")
    if rb"\ud" in body or rb"\uD" in body:
        body = _SURROGATES.sub(lambda found: rb"\ufffd" if found[1] else found[0], body)
    try:
        value = strict_json.loads(body)
    except UnicodeDecodeError as error:
        raise RequestRefused("the body is not UTF-8", code="invalid_json") from error
    except RecursionError as error:
        raise _too_deep(limits.json_depth) from error
    except ValueError as error:
        raise RequestRefused(f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from error
    check_depth(value, limits.json_depth)
    return value


def check_depth(value: Any, limit: int, *, what: str = "the body", param: str | None = None) -> None:
    """Refuses arrays and objects nested more than ``limit`` deep."""
    level = [value]
    for _ in range(limit + 1):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep(limit, what, param)


def refusal(findings: Sequence[Any]) -> RequestRefused:
    """The first of pydantic's findings, in the words of OpenAI's errors."""
    finding = findings[0]
    path = [part for part in finding["loc"] if part not in ("body", "query", "path")]
    param = _path(path)
    kind = str(finding["type"])
    if kind == "missing":
        if not path:
            return RequestRefused(
                "the body is missing", code="missing_required_parameter", remedy="Send a JSON object."
            )
        return RequestRefused(f"missing required parameter: {param}", param=param, code="missing_required_parameter")
    text = str(finding["msg"]).removeprefix("Value error, ")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return RequestRefused(f"{param}: {text}" if param else text, param=param or None, code=code)


def _path(parts: Sequence[object]) -> str:
    """``("messages", 0, "content")`` as ``messages[0].content``; names that pydantic gives to unions are left out."""
    written = ""
    for part in parts:
        if isinstance(part, int):
            written += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(part)) and part not in ("str", "list"):
            written += f".{part}" if written else str(part)
    return written


def _children(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _too_deep(limit: int, what: str = "the body", param: str | None = None) -> RequestRefused:
    return RequestRefused(f"{what} is nested more than {limit} deep", param=param, code="invalid_json")
