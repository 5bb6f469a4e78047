"""``gptoss serve`` in a process of its own, for benchmarks that are its clients. Knows how it is started and ended."""

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


class Served(NamedTuple):
    """A server that answers, its model loaded."""

    host: str
    port: int
    model: str
    pid: int


@contextmanager
def served(artifact: Path, *options: str) -> Iterator[Served]:
    """A server over an artifact, on a free port, for the length of a ``with`` block.

    Args:
        artifact: the folder.
        options: further ones of ``gptoss serve``.
    """
    folder = str(artifact.absolute())
    command = [sys.executable, "-m", "gptoss_runtime.cli.main", "serve", folder, "--port", "0", "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "GPTOSS_API_KEY"}
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # on Windows only a group can be told to end
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, env=environment, creationflags=flags)
    assert process.stdout is not None
    with process.stdout as said:
        try:
            ready = json.loads(said.readline())
            host, port = ready["url"].removeprefix("http://").rsplit(":", 1)
            yield Served(host, int(port), ready["model"], process.pid)
        finally:
            process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
            process.wait(60)
