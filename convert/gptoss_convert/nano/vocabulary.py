"""The o200k_harmony vocabulary, unpacked from ``artifacts/nano/o200k_base.xz``.

Token bytes, ranks, merges and special tokens, written in two formats: tiktoken's (for openai-harmony) and Hugging
Face's (tokenizer.json). tools/nano_training/pack_vocabulary.py made the compressed file.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import lzma
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gptoss_convert.errors import CheckpointError
from gptoss_convert.nano.source import source_dir
from gptoss_runtime.harmony_tokens import FIRST_SPECIAL, SPECIAL_TOKENS, VOCAB_SIZE

_NAMES = {token: text for text, token in SPECIAL_TOKENS.items()}
SPECIAL: dict[str, int] = {_NAMES.get(i, f"<|reserved_{i}|>"): i for i in range(FIRST_SPECIAL, VOCAB_SIZE)}
TIKTOKEN_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"

# o200k's pre-tokenizer, as published with tiktoken (tiktoken_ext/openai_public.py).
_CASE_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CASE_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CASE_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


@functools.cache
def _unpack() -> tuple[tuple[bytes, ...], bytes]:
    path = source_dir() / "o200k_base.xz"
    try:
        raw = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise CheckpointError(f"{path}: cannot read the vocabulary: {error}") from error
    lengths, splits, data = raw[:FIRST_SPECIAL], raw[FIRST_SPECIAL : 2 * FIRST_SPECIAL], raw[2 * FIRST_SPECIAL :]
    edges = accumulate(lengths, initial=0)
    return tuple(data[a:b] for a, b in pairwise(edges)), splits


def tokens() -> tuple[bytes, ...]:
    """Bytes of the 199,998 ordinary tokens; a token's index is its rank and its id."""
    return _unpack()[0]


def merges() -> list[tuple[bytes, bytes]]:
    """Every merge of the byte-level BPE, in order of priority: one for each token of two bytes or more.

    One merge per token is exact. Of all adjacent pairs whose concatenation is a token, tiktoken joins the pair of
    lowest rank. Apply that to a token's own bytes: while there is more than one part, every join has a rank below the
    token's own (no longer token can be built from these bytes alone), so the last two parts are always the same pair,
    whatever the context. Another pair with the same concatenation never occurs. The compressed file stores the split
    position of that pair, one byte per token (0 for single bytes).
    """
    words, splits = _unpack()
    return [(word[:at], word[at:]) for word, at in zip(words, splits, strict=True) if at]


def tiktoken_bytes() -> bytes:
    """The content of o200k_base.tiktoken, byte for byte as OpenAI publishes it.

    Raises:
        CheckpointError: the compressed vocabulary has another checksum than the published one.
    """
    lines = (base64.b64encode(word) + b" %d\n" % rank for rank, word in enumerate(tokens()))
    data = b"".join(lines)
    if hashlib.sha256(data).hexdigest() != TIKTOKEN_SHA256:
        raise CheckpointError(f"{source_dir()}: the compressed vocabulary is damaged")
    return data


def write_tiktoken(path: Path) -> Path:
    """Write o200k_base.tiktoken; with TIKTOKEN_ENCODINGS_BASE naming its folder, openai-harmony works offline."""
    path.write_bytes(tiktoken_bytes())
    return path


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte; byte-level BPE files are written in it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(substitutes)) for byte in range(256)]


def _tokenizer_json() -> dict[str, Any]:
    # in latin-1 a byte and its code point are the same number, so str.translate maps them at C speed
    alphabet = dict(enumerate(_byte_alphabet()))

    def spell(word: bytes) -> str:
        return word.decode("latin-1").translate(alphabet)

    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in SPECIAL.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {spell(word): rank for rank, word in enumerate(tokens())},
            "merges": [[spell(left), spell(right)] for left, right in merges()],
        },
    }


@functools.cache
def tokenizer_text() -> str:
    """The text of tokenizer.json: byte-level BPE over o200k_harmony, readable by ``tokenizers`` and transformers."""
    return json.dumps(_tokenizer_json(), ensure_ascii=False, separators=(",", ":"))


@functools.cache
def tokenizer() -> Tokenizer:
    """The vocabulary as a ``tokenizers.Tokenizer`` that encodes special tokens in a text as ordinary characters.

    Rendering inserts special tokens by id, so that text cannot inject one.
    """
    loaded = Tokenizer.from_str(tokenizer_text())
    loaded.encode_special_tokens = True
    return loaded
