"""Nothing leaves the machine: no look-up, no connection but loopback, no telemetry files, whichever command runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_runtime.privacy import VARIABLES

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


@pytest.mark.integration
@pytest.mark.parametrize("command", ["convert", "generate", "bench", "doctor", "parity", "inspect"])
def test_a_command_reaches_nobody(command: str, nano_checkpoint: Path, nano_artifact: Path, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    arguments = {
        "convert": (str(nano_checkpoint), "-o", str(tmp_path / "artifact")),
        "generate": (str(nano_artifact), *PROMPT),
        "bench": (str(nano_artifact), "--repeat", "2"),
        "doctor": (str(nano_artifact), "--check"),
        "parity": (str(nano_artifact), "--reference", str(nano_checkpoint), "--sequences", "1"),
        "inspect": (str(nano_artifact),),
    }[command]
    home, calls = tmp_path / "home", tmp_path / "calls.txt"
    home.mkdir()
    traced = [strace, "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(calls)]
    done = subprocess.run(
        [*traced, *GPTOSS, command, *arguments], env=_environment(home), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in calls.read_text().splitlines() if OUTSIDE.search(line) and not LOOPBACK.search(line)] == []
    assert not list(home.rglob("*[Tt]elemetry*"))
    assert not list(home.rglob("deviceid"))
