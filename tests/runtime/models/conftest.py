"""Fixtures of the tests that pull: a hub on loopback, and a small artifact to publish on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.models.hub_server import SECRET, HubServer, hub_server
from tests.runtime.models.pulling import WEIGHTS, write_manifest


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is on this machine: allow requests to it, and use a fake token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", SECRET)


@pytest.fixture
def hub(online: None) -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small artifact: an empty graph, and 3 MB of weights that it does not use."""
    folder = tmp_path / "published"
    folder.mkdir()
    model = {"vocab_size": 9, "context_length": 4096, "eos_token_id": [1], "decoder": {"filename": "model.onnx"}}
    (folder / "genai_config.json").write_text(json.dumps({"model": model}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.onnx").write_bytes(b"\x08\x0b")
    (folder / WEIGHTS).write_bytes(os.urandom(3 << 20))
    write_manifest(folder)
    return folder
