"""The lab for every test here, and a last line of each run: which lab it was, or why DirectML was not tested."""

from __future__ import annotations

import pytest

from .lab.lab import Lab
from .lab.sandbox import LabUnavailable

VERDICT = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Lab:
    """The real DirectML; tests that want it are skipped where it cannot be had."""
    stash = request.config.stash
    try:
        found = Lab.ensure()
    except LabUnavailable as e:
        stash[VERDICT] = f"NOT TESTED, no lab: {e}"
        pytest.skip(stash[VERDICT])
    inside = ("onnxruntime-directml", "onnxruntime-genai-directml", "libvkd3d1", "mesa-vulkan-drivers")
    versions = ", ".join(f"{name} {found.packages[name]}" for name in inside)
    stash[VERDICT] = f"tested with {versions} under Wine {found.wine_version}, in {found.folder}"
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A skip is a letter among hundreds; this is a line of its own."""
    if verdict := config.stash.get(VERDICT, ""):
        bad = verdict.startswith("NOT")
        terminalreporter.write_line(f"DirectML: {verdict}", red=bad, bold=bad)
