"""Packs the o200k_base vocabulary as ``artifacts/nano/o200k_base.xz``; gptoss_convert.nano.vocabulary unpacks it."""

from __future__ import annotations

import lzma
from itertools import pairwise


def pack(tokens: list[bytes], splits: bytes) -> bytes:
    """Compresses a vocabulary: all lengths, all splits, all bytes, then LZMA.

    Separate streams compress about a fifth better than one record per token.

    Args:
        tokens: in order of rank.
        splits: the result of :func:`find_split` for each token.
    """
    raw = bytes(map(len, tokens)) + splits + b"".join(tokens)
    return lzma.compress(raw, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)


def find_split(token: bytes, rank: int, ranks: dict[bytes, int]) -> int:
    """Finds where the last merge that makes ``token`` joins its two parts; 0 for a single byte.

    Args:
        token: its bytes.
        rank: its rank.
        ranks: every token's rank.

    Raises:
        ValueError: no sequence of merges below ``rank`` leads to two parts.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joins = ((ranks.get(a + b, rank), i) for i, (a, b) in enumerate(pairwise(parts)))
        lowest, at = min(joins)
        if lowest >= rank:
            raise ValueError(f"token {rank} cannot be reached by merges")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return len(parts[0]) if len(parts) == 2 else 0
