"""``gptoss serve`` as a user runs it: as a process, with signals and errors."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gptoss_runtime.models.registry import SEARCH
from tests.server.running import ask

COMMAND = [sys.executable, "-m", "gptoss_runtime.cli.main", "serve"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_serves_and_shuts_down_cleanly(nano_artifact: Path) -> None:
    environment = {**os.environ, "GPTOSS_API_KEY": "secret"}
    command = [*COMMAND, str(nano_artifact), "--port", "0", "--threads", "1", "--slots", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        headers = {"Authorization": "Bearer secret"}
        with httpx.Client(base_url=ready["url"], headers=headers, timeout=60) as http:
            assert http.get("/openai/loadedmodels").json() == [ready["model"]]
            body = {**ask("What is 27 + 45?"), "model": ready["model"]}
            answer = http.post("/v1/chat/completions", json=body).json()
            assert answer["choices"][0]["message"]["content"] == "27 + 45 = 72"
        assert httpx.get(f"{ready['url']}/v1/models").status_code == 401
        engines = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert engines
    assert not any(engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE for engine in engines)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nothing"], 2, "nothing"),
        (["--host", "0.0.0.0"], 2, "API key"),
        (["--slots", "0"], 2, "slots"),
        (["--ttl", "nan"], 2, "ttl"),
        (["--allow-origin", "*"], 2, "origin"),
    ],
)
def test_invalid_options(arguments: list[str], code: int, text: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "GPTOSS_API_KEY"}
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == code
    assert text in done.stderr
    assert len(done.stderr.splitlines()) >= 2  # what is wrong, and the remedy


def test_working_folder_is_not_searched(nano_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "planted" / "cpu"
    folder.mkdir(parents=True)
    for path in nano_artifact.iterdir():
        os.link(path, folder / path.name)
    environment = {name: value for name, value in os.environ.items() if name not in ("GPTOSS_API_KEY", SEARCH)}
    environment["GPTOSS_CACHE"] = str(tmp_path / "cache")
    options: dict[str, Any] = {"env": environment, "cwd": tmp_path, "text": True, "encoding": "utf-8"}
    done = subprocess.run([*COMMAND, "planted"], capture_output=True, timeout=60, **options)
    assert done.returncode == 2
    assert "--artifacts artifacts" in done.stderr
    for given, expected in (([], []), (["--artifacts", "artifacts"], ["planted:cpu"])):
        command = [*COMMAND, "--port", "0", "--json", *given]
        with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
            try:
                assert process.stdout is not None
                url = json.loads(process.stdout.readline())["url"]
                assert [model["id"] for model in httpx.get(f"{url}/v1/models").json()["data"]] == expected
            finally:
                process.terminate()


def test_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 7
    assert "--port" in done.stderr
