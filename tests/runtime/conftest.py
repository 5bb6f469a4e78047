"""Fixtures of the runtime's tests; ``nano_artifact`` comes from the folder above."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine.base import Engine
from gptoss_runtime.engine.loading import load_engine


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabulary")


@pytest.fixture(scope="session")
def harmony(nano_artifact: Path, cache: Path) -> Harmony:
    return Harmony.load(nano_artifact / "tokenizer.json", cache=cache)


@pytest.fixture(scope="session")
def engine(nano_artifact: Path) -> Iterator[Engine]:
    with load_engine(nano_artifact, threads=1) as engine:
        yield engine
