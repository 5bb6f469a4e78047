"""Many clients at once: a short run of the load benchmark, with the engine killed in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
def test_nothing_is_lost_or_mixed_up_under_load(nano_artifact: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.server_load", str(nano_artifact), "--threads", "1", "--json"]
    sizes = ["--clients", "8", "--seconds", "15", "--slots", "2", "--queue", "4", "--kill", "8"]
    done = subprocess.run([*command, *sizes], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=300)
    report = json.loads(done.stdout)
    assert report["faults"] == []
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no unexpected error was logged
    assert report["kills"] == 1
    counts = report["counts"]
    assert 1 <= counts["died"] <= 2  # those that had a slot, and none that was queued
    assert counts["overloaded"] >= 1  # eight clients, six places
    assert counts["answered"] >= 8
