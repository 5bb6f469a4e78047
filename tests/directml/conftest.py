"""The fixture that provides the lab."""

from __future__ import annotations

import pytest

from .lab.lab import Lab
from .lab.sandbox import LabUnavailable
from .verdict import VERDICT


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Lab:
    """The real DirectML; without a lab, tests that request it are skipped."""
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
