from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_convert.errors import CheckpointError
from gptoss_convert.nano import vocabulary
from tools.nano_training.pack_vocabulary import find_split

# Text that reaches every branch of the pre-tokenizer: cases, contractions, digits, white space, marks, other scripts.
PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "don't",
            "WE'LL",
            "HelloWorld",
            "  \n\n",
            "\t",
            "\r\n",
            "1234567",
            "½",
            "a/b//\n",
            "Straße",
            "日本語",
            "नमस्ते",
            "🙂",
        ]
    ),
    st.sampled_from(["<|start|>", "<|end|>", "<|reserved_200013|>", "functions.get_weather"]),
)


@given(st.lists(PIECES, max_size=8).map("".join))
@settings(max_examples=300, deadline=None)
def test_ids_are_those_of_harmony(harmony: Any, text: str) -> None:
    # surrogates cannot be encoded by either
    text = text.encode("utf-8", "ignore").decode()
    assert vocabulary.tokenizer().encode(text, add_special_tokens=False).ids == harmony.encode(
        text, disallowed_special=()
    )


def test_stored_splits_are_those_that_merging_arrives_at() -> None:
    words = vocabulary.tokens()
    ranks = {word: rank for rank, word in enumerate(words)}
    stored = {left + right: len(left) for left, right in vocabulary.merges()}
    for rank in random.Random(0).sample(range(len(words)), 2000):
        assert stored.get(words[rank], 0) == find_split(words[rank], rank, ranks)


def test_specials_are_those_of_harmony(harmony: Any) -> None:
    for text, token in vocabulary.SPECIAL.items():
        # harmony's own list has no name for this one; the published tokenizer.json has
        expected = "<|reserved_200018|>" if text == "<|endofprompt|>" else text
        assert harmony.decode([token]) == expected


def test_tiktoken_file_is_the_published_one(tmp_path: Path) -> None:
    assert vocabulary.write_tiktoken(tmp_path / "o200k_base.tiktoken").stat().st_size == 3_613_922


def test_a_missing_vocabulary_is_a_checkpoint_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "source_dir", lambda: tmp_path)
    vocabulary._unpack.cache_clear()
    with pytest.raises(CheckpointError, match="cannot read the vocabulary"):
        vocabulary.tokens()
    vocabulary._unpack.cache_clear()
