"""Runs ``gptoss serve`` in a process of its own, for benchmarks of clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Server(NamedTuple):
    """A running server with a loaded model."""

    host: str
    port: int
    model: str
    pid: int


@contextmanager
def serve(artifact: Path, *options: str) -> Iterator[Server]:
    """Serves an artifact on a free port while the ``with`` block runs.

    Args:
        artifact: the folder.
        options: additional options of ``gptoss serve``.
    """
    folder = str(artifact.absolute())
    command = [sys.executable, "-m", "gptoss_runtime.cli.main", "serve", folder, "--port", "0", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "GPTOSS_API_KEY"}
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # Windows sends CTRL_BREAK only to a process group
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, env=environment, creationflags=flags)
    assert process.stdout is not None
    with process.stdout as output:
        try:
            ready = json.loads(output.readline())
            host, port = ready["url"].removeprefix("http://").rsplit(":", 1)
            yield Server(host, int(port), ready["model"], process.pid)
        finally:
            process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
            process.wait(60)
