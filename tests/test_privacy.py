"""Nothing leaves the machine: no look-up, no connection but loopback, no telemetry files, whichever command runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from gptoss_runtime.privacy import VARIABLES
from tests.server.running import ask

GPTOSS = (sys.executable, "-m", "gptoss_runtime.cli.main")
# connect, or a message to an address; local sockets and loopback are allowed
OUTSIDE = re.compile(r"(?:connect|sendto|sendmsg|sendmmsg)\(.*sa_family=AF_INET6?,.*")
LOOPBACK = re.compile(r'inet_addr\("127\.|inet_pton\(AF_INET6, "::1"')
PROMPT = ("--prompt", "hello", "--max-new-tokens", "4")


def _environment(home: Path) -> dict[str, str]:
    """The environment of a user who set none of the variables, with a home folder of their own."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    folders = {"HOME": home, "USERPROFILE": home, "LOCALAPPDATA": home / "local", "XDG_CACHE_HOME": home / ".cache"}
    return environment | {name: str(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("package", ["gptoss_runtime", "gptoss_convert", "gptoss_runtime.sdk", "gptoss_convert.passes"])
def test_importing_any_of_it_turns_telemetry_off(package: str, tmp_path: Path) -> None:
    code = f"import {package}, os; print([os.environ.get(name) for name in {list(VARIABLES)}])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=_environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(list(VARIABLES.values()))


def test_a_user_cannot_turn_it_on_by_accident(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss_runtime import privacy

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    privacy.disable_telemetry()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_generation_leaves_no_device_id(nano_artifact: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*GPTOSS, "generate", str(nano_artifact), *PROMPT], env=_environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    written = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {(".cache", "gptoss"), ("local", "gptoss")}  # harmony's vocabulary


@pytest.fixture
def strace(tmp_path: Path) -> list[str]:
    """The command that records, in ``calls.txt``, what a program and its children send and whom they connect to."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")
    (tmp_path / "home").mkdir()
    calls = str(tmp_path / "calls.txt")
    return [program, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", calls]


def _assert_silent(folder: Path) -> None:
    lines = (folder / "calls.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    assert [line for line in lines if OUTSIDE.search(line) and not LOOPBACK.search(line)] == []
    left = [path for path in (folder / "home").rglob("*") if re.search("telemetry|deviceid|microsoft", path.name, re.I)]
    assert left == []


@pytest.mark.integration
@pytest.mark.parametrize("command", ["demo", "convert", "generate", "chat", "bench", "doctor", "parity", "inspect"])
def test_no_command_contacts_another_machine(
    command: str, nano_checkpoint: Path, nano_artifact: Path, strace: list[str], tmp_path: Path
) -> None:
    arguments = {
        "demo": ("-o", str(tmp_path / "artifacts")),
        "convert": (str(nano_checkpoint), "-o", str(tmp_path / "artifact")),
        "generate": (str(nano_artifact), *PROMPT),
        "chat": (str(nano_artifact), "--max-new-tokens", "4"),
        "bench": (str(nano_artifact), "--repeat", "2"),
        "doctor": (str(nano_artifact), "--check"),
        "parity": (str(nano_artifact), "--reference", str(nano_checkpoint), "--sequences", "1"),
        "inspect": (str(nano_artifact),),
    }[command]
    line = [*strace, *GPTOSS, command, *arguments]
    environment = _environment(tmp_path / "home")
    done = subprocess.run(line, env=environment, cwd=tmp_path, input="hello\n", capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    _assert_silent(tmp_path)


@pytest.mark.integration
def test_the_server_contacts_nobody_but_its_clients(nano_artifact: Path, strace: list[str], tmp_path: Path) -> None:
    line = [*strace, *GPTOSS, "serve", str(nano_artifact), "--port", "0", "--json"]
    environment = _environment(tmp_path / "home")
    with subprocess.Popen(line, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        body = {**ask("What is 27 + 45?"), "model": ready["model"]}
        for path, message in (("chat/completions", body), ("responses", {"model": ready["model"], "input": "hello"})):
            answer = httpx.post(f"{ready['url']}/v1/{path}", json=message, timeout=120)
            assert answer.status_code == 200, answer.text
        psutil.Process(process.pid).children()[0].send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    _assert_silent(tmp_path)
