"""Runs a converted graph with onnxruntime alone, in pieces of any length: what genai does, laid open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray


def logits(model: Path, token_ids: Sequence[int], pieces: Sequence[int]) -> NDArray[np.float32]:
    """Logits [tokens, vocab] of a graph that gives all positions, its cache carried from piece to piece."""
    assert sum(pieces) == len(token_ids)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    cache: dict[str, NDArray[Any]] = {
        node.name: np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32)
        for node in session.get_inputs()
        if node.name.startswith("past_key_values.")
    }
    names, rows, at = [node.name for node in session.get_outputs()], [], 0
    for size in pieces:
        feeds = {
            "input_ids": np.array([token_ids[at : at + size]], np.int64),
            "attention_mask": np.ones((1, at + size), np.int64),
            **cache,
        }
        outputs = dict(zip(names, session.run(None, feeds), strict=True))
        rows.append(outputs.pop("logits")[0])
        cache = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
        at += size
    return np.concatenate(rows)
