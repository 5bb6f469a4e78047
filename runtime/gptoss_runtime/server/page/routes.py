"""The web page: its files at ``/`` and ``/page/``, under a policy that lets it connect to this server only.

Knows files and headers; what the page does is in static/.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from gptoss_runtime.server.errors import NotFound

router = APIRouter(include_in_schema=False)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"content-security-policy": POLICY, "x-frame-options": "DENY", "cache-control": "no-cache"}


@router.get("/")
async def index() -> Response:
    """Return the page."""
    return _serve_file("index.html")


@router.get("/page/{name:path}")
async def file(name: str) -> Response:
    """Return one of the page's files."""
    return _serve_file(name)


def _serve_file(name: str) -> Response:
    found = _list_files().get(name)
    if found is None:
        raise NotFound(f"the page has no file {name[:80]!r}")
    kind = _TYPES.get(name[name.rfind(".") :], "application/octet-stream")
    return Response(found.read_bytes(), media_type=kind, headers=_HEADERS)


def _list_files() -> dict[str, Any]:
    """The page's files by name: a name from a client is looked up, never joined to a path."""
    folder = resources.files("gptoss_runtime.server.page").joinpath("static")
    return {entry.name: entry for entry in folder.iterdir() if entry.is_file()} if folder.is_dir() else {}
