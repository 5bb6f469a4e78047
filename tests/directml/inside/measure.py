"""Runs in the lab: measures one graph's memory and time on DirectML.

python measure.py MODEL LENGTHS MAX_LENGTH OUT.json      LENGTHS: tokens of each run, such as [128,1,1]

One graph per process, because DirectML keeps freed memory. The lab provides the memory file (GPTOSS_LAB_MEMORY).
Without it, as on Windows, those figures are null.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Memory:
    """GPU memory in bytes, as the lab counts it."""

    def __init__(self) -> None:
        name = os.environ.get("GPTOSS_LAB_MEMORY")
        self._counts: NDArray[Any] | None = None if name is None else np.memmap("memory", np.uint64, "r+")

    def live(self) -> int | None:
        """Bytes in use."""
        return None if self._counts is None else int(self._counts[0])

    def restart(self) -> None:
        """Starts a new peak at the bytes in use."""
        if self._counts is not None:
            self._counts[1] = self._counts[0]

    def peak(self) -> int | None:
        """The most since the last ``restart``."""
        return None if self._counts is None else int(self._counts[1])


def main() -> None:
    model, lengths, max_length, out = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    began = time.perf_counter()
    session = onnxruntime.InferenceSession(model, options, providers=[("DmlExecutionProvider", {"device_id": 0})])
    created, memory = time.perf_counter() - began, Memory()
    result: dict[str, Any] = {"create_s": created, "loaded": memory.live(), "runs": []}
    cache = {
        node.name: on_gpu(np.zeros((1, node.shape[1], max_length, node.shape[3]), _TYPES[node.type]))
        for node in session.get_inputs()
        if node.name.startswith("past_key_values.")
    }
    result["with_cache"], at = memory.live(), 0
    for length in lengths:
        memory.restart()
        began = time.perf_counter()
        step(session, cache, at, length, max_length)
        result["runs"].append({"length": length, "s": time.perf_counter() - began, "peak": memory.peak()})
        at += length
    out.write_text(json.dumps(result), encoding="utf-8")


def step(session: onnxruntime.InferenceSession, cache: dict[str, Any], at: int, length: int, max_length: int) -> None:
    """Runs some tokens; the cache is read and written in place, as in genai."""
    binding = session.io_binding()
    binding.bind_cpu_input("input_ids", np.arange(length)[None] % 100)
    binding.bind_cpu_input("attention_mask", np.ones((1, max_length), np.int64))
    binding.bind_cpu_input("position_ids", np.arange(at, at + length)[None])
    for name, value in cache.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
    binding.bind_output("logits", "cpu")
    session.run_with_iobinding(binding)
    assert np.isfinite(binding.copy_outputs_to_cpu()[0]).all()


def on_gpu(array: NDArray[Any]) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array, "dml", 0)


if __name__ == "__main__":
    main()
