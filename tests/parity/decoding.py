"""Runs converted graphs with onnxruntime alone, in pieces of any length: what genai does, laid open.

Also a script, so that another Python, with another onnxruntime, can run them:

    python decoding.py jobs.json        a list of {"model", "token_ids", "pieces", "out": logits.npy, "max_length"}
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

CPU, DIRECTML = "CPUExecutionProvider", "DmlExecutionProvider"
_OPTIONS: dict[str, dict[str, Any]] = {CPU: {}, DIRECTML: {"device_id": 0}}
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@functools.lru_cache(maxsize=1)  # one graph after the other, each with several sequences
def session(model: Path, provider: str = CPU) -> onnxruntime.InferenceSession:
    """A session that refuses to leave a node to the CPU, unless that is what was asked for."""
    options = onnxruntime.SessionOptions()
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return onnxruntime.InferenceSession(str(model), options, providers=[(provider, _OPTIONS[provider])])


def logits(
    model: Path,
    token_ids: Sequence[int],
    pieces: Sequence[int],
    *,
    max_length: int | None = None,
    provider: str = CPU,
) -> NDArray[np.float32]:
    """Logits [tokens, vocab] of a graph that gives all positions, its cache carried from piece to piece.

    Args:
        model: the model.onnx.
        token_ids: one sequence.
        pieces: how many of them at a time.
        max_length: positions of a cache of fixed size; ``None``: it grows.
        provider: CPU or DIRECTML.
    """
    assert sum(pieces) == len(token_ids)
    run = session(model, provider)
    cache: dict[str, NDArray[Any]] = {
        node.name: np.zeros((1, node.shape[1], max_length or 0, node.shape[3]), _TYPES[node.type])
        for node in run.get_inputs()
        if node.name.startswith("past_key_values.")
    }
    takes_positions = any(node.name == "position_ids" for node in run.get_inputs())
    names, rows, at = [node.name for node in run.get_outputs()], [], 0
    for size in pieces:
        feeds = {
            "input_ids": np.array([token_ids[at : at + size]], np.int64),
            "attention_mask": np.ones((1, max_length or at + size), np.int64),
            **({"position_ids": np.arange(at, at + size)[None]} if takes_positions else {}),
            **cache,
        }
        outputs = dict(zip(names, run.run(None, feeds), strict=True))
        rows.append(outputs.pop("logits")[0])
        cache = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}
        at += size
    return np.concatenate(rows).astype(np.float32)


def main() -> None:
    """All jobs of a file, on DirectML."""
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        model, ids, pieces = Path(job["model"]), job["token_ids"], job["pieces"]
        rows = logits(model, ids, pieces, max_length=job["max_length"], provider=DIRECTML)
        np.save(job["out"], rows)
        print("done", job["out"], flush=True)


if __name__ == "__main__":
    main()
