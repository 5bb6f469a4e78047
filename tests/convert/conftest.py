"""A tiny checkpoint of random weights with a tokenizer, to break, and a fresh copy of it for every test that does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.synthetic import write_checkpoint

TINY: dict[str, Any] = {
    **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"sliding_window": 8, "max_position_embeddings": 64, "eos_token_id": 1, "pad_token_id": 0},
}


def write_tiny(folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> Path:
    write_checkpoint(folder, TINY | (changes or {}), **options)
    vocabulary = {chr(33 + i): i for i in range(90)}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "!"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def breakable(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "tiny"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "sharded", shards=3)
