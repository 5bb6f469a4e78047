"""Computes logits of converted graphs with onnxruntime alone, in pieces of any length."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.parity.session import Session

session = functools.lru_cache(maxsize=1)(Session)  # one graph after the other, each with several sequences


def logits(
    model: Path, token_ids: Sequence[int], pieces: Sequence[int], *, max_length: int | None = None
) -> NDArray[np.float32]:
    """Logits [tokens, vocab] of a graph that returns all positions; the cache is carried from piece to piece.

    Args:
        model: the model.onnx.
        token_ids: one sequence.
        pieces: the number of tokens in each piece.
        max_length: length of a fixed-size cache; ``None``: one more than the tokens.
    """
    assert sum(pieces) == len(token_ids)
    rows = [rows[0] for (rows,) in session(model).run(token_ids, pieces, ["logits"], max_length=max_length)]
    return np.concatenate(rows).astype(np.float32)
