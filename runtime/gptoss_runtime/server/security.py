"""Who may call: checks Host, Origin, API key and content type in one ASGI middleware that never buffers a response.

A page on any web site can send requests to this machine, and any name can be made to resolve to it. Therefore the Host
must be one of the server's own (a foreign one is DNS rebinding), an Origin must be its own or listed, and a request
with a body must be JSON, which an HTML form cannot send. Knows headers; of routes it knows only which need no key.
"""

from __future__ import annotations

import hmac
import json
import re
import uuid
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_runtime.server.errors import Forbidden, HttpError, Unauthorized, UnsupportedMediaType, to_problem
from gptoss_runtime.server.request_body import body_too_large
from gptoss_runtime.server.settings import LOOPBACK_NAMES, Settings, bracket_ipv6

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>\d{1,5}))?")
_OPEN_PATHS = ("/", "/health", "/favicon.ico")  # need no key: the page has to load before it can ask for one
_OPEN_FOLDER = "/page/"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_METHODS = "GET, POST, DELETE, OPTIONS"
_SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class RequestGuard:
    """Refuses requests that are not allowed, and adds security headers to every response.

    Args:
        app: the app behind it.
        settings: allowed names and origins, and the key.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._key = None if settings.api_key is None else settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # this server has no WebSockets
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _Headers(scope["headers"])
        added = _SECURITY_HEADERS | {"x-request-id": _get_request_id(headers)}
        try:
            host = self._check_host(headers, scope)
            added |= self._check_origin(headers, f"{scope['scheme']}://{host}")
            if scope["method"] == "OPTIONS" and headers.one("access-control-request-method"):
                await _respond(send, 204, b"", added | self._make_preflight_headers(headers))
                return
            self._check_key(headers, scope["path"])
            self._check_body(headers, scope["method"])
        except HttpError as error:
            problem = to_problem(error)
            body = json.dumps(problem.body).encode()
            json_headers = problem.headers | {"content-type": "application/json"}
            await _respond(send, problem.status, body, added | json_headers)
            return
        await self._app(scope, receive, _with_headers(send, added))

    def _check_host(self, headers: _Headers, scope: Scope) -> str:
        """Returns the Host header, if it is one of the server's names.

        Raises:
            Forbidden: it is not.
        """
        values = headers.all("host")
        host = values[0].lower() if len(values) == 1 else ""
        match = _HOST.fullmatch(host)
        if match is not None:
            own = scope.get("server") or (None, None)
            default = 443 if scope["scheme"] == "https" else 80
            port = int(match["port"] or default)
            names = (*LOOPBACK_NAMES, bracket_ipv6(self._settings.host.lower()))
            if match["name"] in names and port == own[1]:
                return host
            if match["name"] in self._settings.allow_hosts or host in self._settings.allow_hosts:
                return host
        raise Forbidden(
            f"the Host header {', '.join(values)[:100]!r} is not this server's",
            code="host_not_allowed",
            remedy="Call it by localhost or 127.0.0.1 and its port, or start it with --allow-host NAME.",
        )

    def _check_origin(self, headers: _Headers, own: str) -> dict[str, str]:
        """Returns the response headers that let a page of an allowed origin read the response.

        Raises:
            Forbidden: the origin is neither the server's own nor listed.
        """
        values = headers.all("origin")
        if not values:
            return {}
        origin = values[0].lower() if len(values) == 1 else ""
        if origin == own:
            return {"vary": "Origin"}
        if origin in self._settings.allow_origins:
            return {
                "access-control-allow-origin": values[0],
                "access-control-expose-headers": "Retry-After, X-Request-Id",
                "cross-origin-resource-policy": "cross-origin",
                "vary": "Origin",
            }
        raise Forbidden(
            f"pages of {', '.join(values)[:100]!r} may not call this server",
            code="origin_not_allowed",
            remedy="Start it with --allow-origin ORIGIN if they should.",
        )

    def _make_preflight_headers(self, headers: _Headers) -> dict[str, str]:
        allowed = {
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": headers.one("access-control-request-headers")
            or "authorization, content-type",
            "access-control-max-age": "600",
        }
        if headers.one("access-control-request-private-network") == "true":
            allowed["access-control-allow-private-network"] = "true"
        return allowed

    def _check_key(self, headers: _Headers, path: str) -> None:
        if self._key is None or path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER):
            return
        scheme, _, sent = headers.one("authorization").partition(" ")
        if not hmac.compare_digest(sent.strip().encode("latin-1"), self._key) or scheme.lower() != "bearer":
            raise Unauthorized(
                "the API key is missing or wrong" if sent else "this server asks for an API key",
                remedy="Send it as: Authorization: Bearer KEY.",
            )

    def _check_body(self, headers: _Headers, method: str) -> None:
        length = headers.one("content-length")
        if length.isdecimal() and int(length) > self._settings.limits.body_bytes:
            raise body_too_large(self._settings.limits)
        has_no_body = length in ("", "0") and not headers.one("transfer-encoding")
        if method in ("GET", "HEAD", "OPTIONS", "DELETE") or has_no_body:
            return
        kind = headers.one("content-type").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise UnsupportedMediaType(
                f"the content type is {kind[:80] or 'not given'!r}", remedy="Send application/json."
            )


def is_same_site(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether another site's page cannot have caused this request; a GET needs no more than a link or an image."""
    parsed = _Headers(headers)
    return not parsed.all("origin") and parsed.one("sec-fetch-site") in ("", "same-origin", "none")


class _Headers:
    """A request's headers as text."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._raw = [(name.lower(), value.decode("latin-1")) for name, value in raw]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._raw if key == name.encode()]

    def one(self, name: str) -> str:
        """The value; "" if there is none or more than one."""
        values = self.all(name)
        return values[0] if len(values) == 1 else ""


def _get_request_id(headers: _Headers) -> str:
    """The client's own id for its request, so that it can find it in its logs; else a new one."""
    given = headers.one("x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


async def _respond(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": _encode_headers(headers)})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send, added: dict[str, str]) -> Send:
    """Wraps ``send`` so that a response gets these headers, where the app has not set them itself."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            missing = [(name, value) for name, value in _encode_headers(added) if name not in present]
            message = {**message, "headers": [*message["headers"], *missing]}
        await send(message)

    return send_with_headers


def _encode_headers(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
