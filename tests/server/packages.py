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
from pathlib import Path

import filelock
import platformdirs
import pytest


def installed(name: str, *requirements: str) -> Path:
    """The folder of packages, pinned by ``requirements``; skips the test where they cannot be had, with pip's reason.

    Args:
        name: of the folder, for whoever looks into the cache.
        requirements: as pip takes them, with versions.
    """
    digest = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    folder = platformdirs.user_cache_path("gptoss-windows") / f"{name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.exists():  # built aside and renamed: what has the name is whole
            aside = folder.with_name(folder.name + ".building")
            shutil.rmtree(aside, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            command += ["--only-binary=:all:", "--target", str(aside), *requirements]
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600)
            if done.returncode:
                pytest.skip(f"{', '.join(requirements)} cannot be installed here: {done.stderr.strip()[-300:]}")
            aside.rename(folder)
    return folder


def run(
    packages: Path, *command: str, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python with the packages before all others, to its end."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **(environment or {}), "PYTHONPATH": str(packages), "PYTHONUTF8": "1"},
        timeout=300,
    )
