"""Adds a last line to each run of DirectML's tests: which lab ran them, or why DirectML was not tested.

A plugin and no conftest.py, because pytest-xdist's controller, which prints the line, loads none below tests/.
"""

from __future__ import annotations

from typing import Any

import pytest

VERDICT = pytest.StashKey[str]()
OUTPUT = "gptoss_directml"  # key in the data that a worker sends to the controller


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[OUTPUT] = session.config.stash.get(VERDICT, "")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if verdict := getattr(node, "workeroutput", {}).get(OUTPUT):  # none from a worker that crashed
        node.config.stash[VERDICT] = verdict


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A skipped test is easy to miss; this line is not."""
    if verdict := config.stash.get(VERDICT, ""):
        bad = verdict.startswith("NOT")
        terminalreporter.write_line(f"DirectML: {verdict}", red=bad, bold=bad)
