"""Fixtures shared by all tests: nano's checkpoint and artifact, made once per run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import filelock
import hypothesis
import pytest

pytest_plugins = ["pytester", "tests.tiers", "tests.workers", "tests.directml.verdict"]
os.environ.update(ORT_DISABLE_TELEMETRY="1", OLIVE_DISABLE_TELEMETRY="1")  # before a test imports either by itself
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never contact a hub
hypothesis.settings.register_profile("gptoss", deadline=None)  # how long an example takes depends on the machine's load
hypothesis.settings.load_profile("gptoss")
os.environ["GPTOSS_DATE"] = "0"  # nano's answers must not depend on the date


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one process makes and all processes of a run use, if pytest-xdist runs several.

    Args:
        factory: pytest's, of this process.
        name: the folder's path, relative to the run's temporary folder.
        make: creates the folder, completely or not at all.
    """
    run = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    folder = run / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(run / f"{name.replace('/', '-')}.lock"):
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture(scope="session")
def nano_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano as an ordinary checkpoint folder; not to be changed."""
    from gptoss_convert.nano import materialise

    return once(tmp_path_factory, "checkpoints/gptoss-nano", materialise)


@pytest.fixture(scope="session")
def nano_artifact(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano converted for the CPU by its Olive workflow; not to be changed."""
    from gptoss_convert.workflow import convert

    return once(tmp_path_factory, "artifacts/gptoss-nano/cpu", lambda folder: convert(nano_checkpoint, folder))
