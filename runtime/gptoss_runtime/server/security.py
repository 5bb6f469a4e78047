"""Who may call: Host, Origin, API key and content type, as one pure ASGI layer that never touches a response's stream.

A browser page anywhere can send requests to this machine, and a name anywhere can be made to point at it. So the Host
must be one of ours (a foreign one is DNS rebinding), an Origin must be our own or listed, and what changes anything
must be JSON, which no form can send. Knows headers; knows nothing of routes but which are open.
"""

from __future__ import annotations

import hmac
import json
import re
import uuid
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gptoss_runtime.server.bodies import too_large
from gptoss_runtime.server.errors import KeyRefused, NotAllowed, NotJson, RequestRefused, problem
from gptoss_runtime.server.settings import LOOPBACK_NAMES, Settings, bracketed

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>\d{1,5}))?")
_OPEN = ("/", "/health", "/favicon.ico")  # what needs no key: a page that asks for it has to load first
_OPEN_FOLDER = "/page/"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_METHODS = "GET, POST, DELETE, OPTIONS"
_SHIELD = {
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Guard:
    """The layer around the app.

    Args:
        app: what it guards.
        settings: names, origins and the key.
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
        if scope["type"] != "http":  # no WebSockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = _Headers(scope["headers"])
        extra = _SHIELD | {"x-request-id": _request_id(headers)}
        try:
            host = self._check_host(headers, scope)
            extra |= self._check_origin(headers, f"{scope['scheme']}://{host}")
            if scope["method"] == "OPTIONS" and headers.one("access-control-request-method"):
                await _answer(send, 204, b"", extra | self._preflight(headers))
                return
            self._check_key(headers, scope["path"])
            self._check_body(headers, scope["method"])
        except RequestRefused as error:
            found = problem(error)
            body = json.dumps(found.body).encode()
            await _answer(send, found.status, body, extra | found.headers | {"content-type": "application/json"})
            return
        await self._app(scope, receive, _with_headers(send, extra))

    def _check_host(self, headers: _Headers, scope: Scope) -> str:
        """The Host header, one of ours."""
        values = headers.all("host")
        host = values[0].lower() if len(values) == 1 else ""
        found = _HOST.fullmatch(host)
        if found is not None:
            own = scope.get("server") or (None, None)
            default = 443 if scope["scheme"] == "https" else 80
            port = int(found["port"] or default)
            names = (*LOOPBACK_NAMES, bracketed(self._settings.host.lower()))
            if found["name"] in names and port == own[1]:
                return host
            if found["name"] in self._settings.allow_hosts or host in self._settings.allow_hosts:
                return host
        raise NotAllowed(
            f"the Host header {', '.join(values)[:100]!r} is not this server's",
            code="host_not_allowed",
            remedy="Call it by localhost or 127.0.0.1 and its port, or start it with --allow-host NAME.",
        )

    def _check_origin(self, headers: _Headers, own: str) -> dict[str, str]:
        """The headers that let a listed origin's page read the answer."""
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
        raise NotAllowed(
            f"pages of {', '.join(values)[:100]!r} may not call this server",
            code="origin_not_allowed",
            remedy="Start it with --allow-origin ORIGIN if they should.",
        )

    def _preflight(self, headers: _Headers) -> dict[str, str]:
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
        if self._key is None or path in _OPEN or path.startswith(_OPEN_FOLDER):
            return
        scheme, _, sent = headers.one("authorization").partition(" ")
        if not hmac.compare_digest(sent.strip().encode("latin-1"), self._key) or scheme.lower() != "bearer":
            raise KeyRefused(
                "the API key is missing or wrong" if sent else "this server asks for an API key",
                remedy="Send it as: Authorization: Bearer KEY.",
            )

    def _check_body(self, headers: _Headers, method: str) -> None:
        length = headers.one("content-length")
        if length.isdecimal() and int(length) > self._settings.limits.body_bytes:
            raise too_large(self._settings.limits)
        bodiless = length in ("", "0") and not headers.one("transfer-encoding")
        if method in ("GET", "HEAD", "OPTIONS", "DELETE") or bodiless:
            return
        kind = headers.one("content-type").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise NotJson(f"the content type is {kind[:80] or 'not given'!r}", remedy="Send application/json.")


def from_this_site(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request that a link or an image could make was not made by another site's page."""
    seen = _Headers(headers)
    return not seen.all("origin") and seen.one("sec-fetch-site") in ("", "same-origin", "none")


class _Headers:
    """A request's headers as text."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._raw = [(name.lower(), value.decode("latin-1")) for name, value in raw]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._raw if key == name.encode()]

    def one(self, name: str) -> str:
        """The value, or "" where there is none or more than one."""
        values = self.all(name)
        return values[0] if len(values) == 1 else ""


def _request_id(headers: _Headers) -> str:
    """The client's own name for its request where it gives one, so that it finds it again; else a new one."""
    given = headers.one("x-request-id")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"


async def _answer(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": _raw(headers)})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send, extra: dict[str, str]) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            added = [(name, value) for name, value in _raw(extra) if name not in present]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return with_headers


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
