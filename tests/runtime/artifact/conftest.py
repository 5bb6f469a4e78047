"""Fixtures of the attacks on an artifact: a copy of nano to change, and a library that shows it was loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.artifact.changes import link


@pytest.fixture
def folder(nano_artifact: Path, tmp_path: Path) -> Path:
    """A copy of nano made of hard links: tests may replace files but must not write to them."""
    folder = tmp_path / "artifact"
    link(nano_artifact, folder)
    return folder


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that the library below creates when it is loaded."""
    return tmp_path / "it-ran"


@pytest.fixture
def library(folder: Path, marker: Path) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler to build a library with")
    source = f"""#include <fcntl.h>
    __attribute__((constructor)) static void run(void) {{ creat({json.dumps(str(marker))}, 0600); }}"""
    built = folder / "harmless.so"
    line = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(built)]
    subprocess.run(line, input=source.encode(), check=True, timeout=60)
    return built
