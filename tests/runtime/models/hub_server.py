"""A fake hub on loopback that answers huggingface_hub's requests from memory or from a folder.

It uses real sockets and implements: the files of a revision, ``resolve`` with ETag and X-Repo-Commit, a redirect of
large files to a second server that stands for the CDN, and range requests. Tests can make it fail.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
SECRET = "hf_" + "thisistheusersownsecrettoken"
SIGNATURE = "X-Amz-Signature=deadbeef"
_LARGE = 1 << 20  # bytes; larger files are redirected to the CDN


@dataclass
class HubServer:
    """The hub's files, the requests it received, and its failures.

    Attributes:
        files: content by path, as bytes or a file.
        revisions: commit by name of a revision.
        cuts: by path, the number of bytes after which each response in turn is cut off.
        listed: sizes to list instead of the sizes of ``files``.
        status: by path or "api", the status to answer with.
        asked: method, path and range of every request for content.
        authorized: whether each request to the hub had the user's token.
        leaked: paths that were requested from the CDN with the user's token.
        endpoint: URL of the hub.
        other: URL of the CDN.
        pause: if set, responses wait for this event.
    """

    files: dict[str, bytes | Path] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    cuts: dict[str, list[int]] = field(default_factory=dict)
    listed: dict[str, int] | None = None
    status: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    authorized: list[bool] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    endpoint: str = ""
    other: str = ""
    pause: threading.Event | None = None

    def add(self, folder: Path, prefix: str = "") -> None:
        """Serves the files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.files[prefix + path.relative_to(folder).as_posix()] = path

    def content(self, path: str) -> bytes:
        found = self.files[path]
        return found.read_bytes() if isinstance(found, Path) else found

    def gets(self, path: str) -> list[str | None]:
        """Returns the range of every GET request for a file's content."""
        return [range_ for method, asked, range_ in self.asked if method == "GET" and asked == path]


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Runs a hub and its CDN on two ports of this machine."""
    state = HubServer()
    servers = [_server(state, cdn=False), _server(state, cdn=True)]
    state.endpoint, state.other = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield state
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


def _server(state: HubServer, *, cdn: bool) -> ThreadingHTTPServer:
    class Handler(_Handler):
        hub = state
        is_cdn = cdn

    return _Server(("127.0.0.1", 0), Handler)


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Ignores clients that disconnect, which some tests do."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    is_cdn: bool
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.is_cdn:
            if "Authorization" in self.headers:
                self.hub.leaked.append(path)
            return self._content(path.removeprefix("/cdn/"))
        self.hub.authorized.append(self.headers.get("Authorization") == f"Bearer {SECRET}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            return self._revision(match[1], match[2])
        if match := re.fullmatch(r"/[^/]+/[^/]+/resolve/([^/]+)/(.+)", path):
            return self._resolve(match[1], match[2])
        return self._error(404, "RepoNotFound")

    def _revision(self, repository: str, revision: str) -> None:
        if "api" in self.hub.status:
            return self._error(self.hub.status["api"], "GatedRepo" if self.hub.status["api"] == 403 else None)
        if repository.startswith("nobody/"):
            return self._error(404, "RepoNotFound")
        commit = self.hub.revisions.get(revision, revision)
        if not re.fullmatch("[0-9a-f]{40}", commit):
            return self._error(404, "RevisionNotFound")
        sizes = {path: len(self.hub.content(path)) for path in self.hub.files}
        siblings = [{"rfilename": path, "size": size} for path, size in (self.hub.listed or sizes).items()]
        body = json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)
        return None

    def _resolve(self, revision: str, path: str) -> None:
        if path in self.hub.status:
            return self._error(self.hub.status[path], None)
        if path not in self.hub.files:
            return self._error(404, "EntryNotFound")
        content = self.hub.content(path)
        headers = {"X-Repo-Commit": self.hub.revisions.get(revision, revision)}
        etag = hashlib.sha256(content).hexdigest()
        if len(content) < _LARGE:
            return self._content(path, headers | {"ETag": f'"{etag}"'})
        self.hub.asked.append((f"{self.command} resolve", path, None))
        location = f"{self.hub.other}/cdn/{path}?{SIGNATURE}"
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content)), "Location": location}
        return self._head(302, headers | {"Content-Length": "0"})

    def _content(self, path: str, headers: dict[str, str] | None = None) -> None:
        content, wanted = self.hub.content(path), self.headers.get("Range")
        self.hub.asked.append((self.command, path, wanted))
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        part = content[start:]
        ranged = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        self._head(206 if wanted else 200, {**(headers or {}), **ranged, "Content-Length": str(len(part))})
        if self.command == "HEAD":
            return
        if self.hub.pause is not None:
            self.hub.pause.wait(20)
        cuts = self.hub.cuts.get(path)
        if cuts:
            part = part[: cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(part)

    def _error(self, status: int, code: str | None) -> None:
        self._head(status, {"Content-Length": "0"} | ({"X-Error-Code": code} if code else {}))

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
