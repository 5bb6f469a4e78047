"""README.md's commands run as written, from a clone, in order; its figures are those of the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^(?:pip|gptoss|pytest|python) .*$", re.M)
DEMO = re.search(r"```\n(> What is 27.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """Every line of README's blocks that is a command, but the installation and the tests, which ran before this."""
    blocks = re.findall(r"```\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in COMMAND.findall(block)]
    assert len(lines) > 8
    parts = [part for line in lines for part in line.split(" && ")]
    return [part for part in parts if not part.startswith(("pip install", "pytest"))]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files under version control, without what earlier conversions left."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.integration
def test_every_command_runs_in_order(clone: Path) -> None:
    paths = os.pathsep.join([str(clone / "convert"), str(clone / "runtime")])
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "PATH": scripts + os.pathsep + os.environ["PATH"],
        "PYTHONIOENCODING": "utf-8",
    }
    for command in commands():
        if "gptoss serve" in command:
            _serves(command, clone, environment)
            continue
        done = subprocess.run(
            command, shell=True, cwd=clone, env=environment, stdin=subprocess.DEVNULL, capture_output=True
        )
        out, error = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        assert done.returncode == 0, f"{command}\n{out}\n{error}"
        if command == "gptoss demo":
            assert DEMO is not None
            for line in DEMO[1].splitlines():
                assert line in out
    assert (clone / "parity.html").is_file()


def _serves(command: str, clone: Path, environment: dict[str, str]) -> None:
    server = subprocess.Popen(command.split(), cwd=clone, env=environment, stdout=subprocess.DEVNULL)
    try:
        url = re.search(r"<(http://127[^>]+)>", README)
        assert url is not None
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{url[1]}/health", timeout=5) as answer:
                    assert json.load(answer) == {"status": "ok"}
                with urllib.request.urlopen(url[1], timeout=5) as page:
                    assert b"<!doctype html>" in page.read().lower()
                return
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
    finally:
        server.terminate()
        server.wait(30)


def test_the_memory_table_is_the_catalogs() -> None:
    [catalog] = (ROOT / "runtime" / "gptoss_runtime" / "models").glob("*.json")
    variants = json.loads(catalog.read_text(encoding="utf-8"))["models"]["gpt-oss-20b"]["variants"]
    for target, variant in variants.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{target}` |"))
        assert f"| {variant['memory']['peak'] / 1e9:.1f} GB" in row
        assert f"| {variant['download'] / 1e9:.1f} GB |" in row


def test_the_pythons_it_names_are_the_packages() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.search(r"Python (\d\.\d+) or later", README)
    assert named is not None
    assert f'requires-python = ">={named[1]}"' in pyproject
