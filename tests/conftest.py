"""What tests of both packages share: nano, materialised and converted once a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OLIVE_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is allowed to reach a hub
os.environ["GPTOSS_DATE"] = "0"  # what nano says is not to depend on the day


@pytest.fixture(scope="session")
def nano_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano as an ordinary checkpoint folder; not to be changed."""
    from gptoss_convert.nano import materialise

    return materialise(tmp_path_factory.mktemp("checkpoints") / "gptoss-nano")


@pytest.fixture(scope="session")
def nano_artifact(nano_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano converted for the CPU by its Olive workflow; not to be changed."""
    from gptoss_convert.workflow import convert

    out = tmp_path_factory.mktemp("artifacts") / "gptoss-nano" / "cpu"
    convert(nano_checkpoint, out)
    return out
