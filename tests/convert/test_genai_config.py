"""Stop tokens in genai_config.json, for checkpoints with and without a generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert import targets
from gptoss_convert.artifact import genai_config
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.nano.folder import write_tokenizer
from gptoss_convert.synthetic import write_checkpoint

from .conftest import TINY

HARMONY = {"vocab_size": 201088, "eos_token_id": 200002, "pad_token_id": 199999}


@pytest.fixture
def harmony(tmp_path: Path) -> Path:
    """A checkpoint with harmony's vocabulary, its weights never written, and no generation_config.json."""
    source = write_checkpoint(tmp_path / "harmony", TINY | HARMONY, hollow=True)
    write_tokenizer(source)
    (source / "generation_config.json").unlink(missing_ok=True)
    return source


def model_section(source: Path, target: str = "cpu") -> dict[str, Any]:
    section: dict[str, Any] = genai_config(Checkpoint.open(source), targets.load(target))["model"]
    return section


def special_tokens(source: Path) -> dict[str, int]:
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


@pytest.mark.parametrize("target", targets.names())
def test_harmonys_stop_tokens_by_default(target: str, harmony: Path) -> None:
    """A tool call ends a turn, as an answer does: without <|call|> a model would invent the tool's output."""
    tokens, section = special_tokens(harmony), model_section(harmony, target)
    assert set(section["eos_token_id"]) == {tokens[name] for name in ("<|return|>", "<|call|>", "<|endoftext|>")}
    assert section["bos_token_id"] == tokens["<|startoftext|>"]
    assert section["pad_token_id"] == tokens["<|endoftext|>"]


def test_a_generation_config_takes_precedence(harmony: Path) -> None:
    given = {"bos_token_id": 3, "eos_token_id": [200002, 5], "pad_token_id": 4}
    (harmony / "generation_config.json").write_text(json.dumps(given), encoding="utf-8")
    section = model_section(harmony)
    assert {name: section[name] for name in given} == given


def test_another_vocabulary_has_the_tokens_of_its_config(tiny: Path) -> None:
    section = model_section(tiny)
    assert (section["eos_token_id"], section["bos_token_id"], section["pad_token_id"]) == ([1], 1, 0)
