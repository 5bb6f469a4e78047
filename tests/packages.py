"""PyPI packages that one test needs and nothing else may see: installed once a version, into the user's cache.

They go into a folder for PYTHONPATH, so that a process of its own can have other versions than the tests have.
Knows pip; knows nothing of what the packages do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock
import platformdirs
import pytest


def install_packages(name: str, *requirements: str, alone: bool = False) -> Path:
    """Installs packages into a folder of the cache; skips the test with pip's message if that fails.

    Args:
        name: the beginning of the folder's name.
        requirements: pinned, as for pip.
        alone: without dependencies; the tests' own packages provide those.
    """
    dependencies = ["--no-deps"] if alone else []

    def build(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:"]
        step([*pip, *dependencies, "--target", str(folder), *requirements], folder, what=", ".join(requirements))

    return build_cached(name, sys.version, *dependencies, *requirements, build=build)


def build_cached(name: str, *identity: str, build: Callable[[Path], None]) -> Path:
    """A folder in the cache, built if there is none, by one process at a time.

    Args:
        name: the beginning of the folder's name.
        identity: everything that the contents depend on.
        build: fills an empty folder.
    """
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:12]
    folder = platformdirs.user_cache_path("gptoss-windows") / f"{name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.exists():  # built aside and renamed: what has the name is whole
            aside = folder.with_name(folder.name + ".building")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            build(aside)
            aside.rename(folder)
    return folder


def step(command: list[str], folder: Path, *, what: str) -> None:
    """Runs a command that installs; skips the test where it cannot, with its last words."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=600
    )
    if done.returncode:
        pytest.skip(f"{what} cannot be installed here: {done.stderr.strip()[-300:]}")


def run(
    packages: Path, *command: str, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python with the packages before all others, to its end."""
    # onnxruntime_genai leaves there, when it is imported, which onnxruntime every other genai shall load
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_LIB_PATH"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**inherited, **(environment or {}), "PYTHONPATH": str(packages), "PYTHONUTF8": "1"},
        timeout=300,
    )
