from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_convert.errors import CheckpointError, OutputExists
from gptoss_convert.nano import materialise, source_dir, tensors

FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
}


def test_the_source_is_small() -> None:
    assert sum(path.stat().st_size for path in source_dir().iterdir()) < 7e6


def test_files_are_those_of_a_checkpoint(checkpoint: Path) -> None:
    assert {path.name for path in checkpoint.iterdir()} == FILES
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]  # nothing left beside it


def test_bytes_are_deterministic(checkpoint: Path, tmp_path: Path) -> None:
    again = materialise(tmp_path / "again")
    for name in FILES:
        first, second = (hashlib.sha256((folder / name).read_bytes()).digest() for folder in (checkpoint, again))
        assert first == second, name


def test_an_existing_folder_stays_unless_overwriting_is_requested(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    for overwrite in (False, True):  # a folder of other things is never replaced
        with pytest.raises(OutputExists):
            materialise(tmp_path, overwrite=overwrite)
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"
    materialise(tmp_path / "empty")
    materialise(tmp_path / "empty", overwrite=True)
    assert {path.name for path in (tmp_path / "empty").iterdir()} == FILES


def test_shapes_are_those_of_the_config(checkpoint: Path) -> None:
    found = tensors.read(checkpoint / "model.safetensors")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    hidden, inner, experts = (config[key] for key in ("hidden_size", "intermediate_size", "num_local_experts"))
    assert found["lm_head.weight"].shape == (config["vocab_size"], hidden)
    one = "model.layers.3.mlp.experts."
    assert found[one + "gate_up_proj_blocks"].shape == (experts, 2 * inner, hidden // 32, 16)
    assert found[one + "gate_up_proj_scales"].shape == (experts, 2 * inner, hidden // 32)
    assert found[one + "down_proj_blocks"].shape == (experts, hidden, inner // 32, 16)
    assert len(found) == 3 + 4 * 19


@given(st.binary(max_size=40))
@settings(max_examples=50, deadline=None)
def test_damaged_files_are_checkpoint_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        tensors.read(path)
