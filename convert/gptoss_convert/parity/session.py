"""Runs any of our decoders with onnxruntime alone, feeding prompts in chunks of any length.

This covers what onnxruntime-genai does not offer, such as DirectML's graphs, with a cache of fixed size, on the CPU.
Imports nothing of this project, so that the file can be copied to another Python with another onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

# onnxruntime's names and options of our providers. Without device_id, DirectML silently falls back to the CPU.
PROVIDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "directml": ("DmlExecutionProvider", {"device_id": 0}),
    "cuda": ("CUDAExecutionProvider", {}),
    "webgpu": ("WebGpuExecutionProvider", {}),
}
PIECE = 128  # tokens of a prompt computed at a time, as the runtime does on the CPU
_TYPES: dict[str, type[np.generic]] = {
    **{"tensor(float)": np.float32, "tensor(float16)": np.float16},
    **{"tensor(int64)": np.int64, "tensor(int32)": np.int32},
}


def is_available(provider: str) -> bool:
    """Whether this onnxruntime has an execution provider, given our name for it."""
    return provider in PROVIDERS and PROVIDERS[provider][0] in onnxruntime.get_available_providers()


def split_prompt(tokens: int) -> list[int]:
    """Lengths of the chunks that a prompt of ``tokens`` tokens is computed in."""
    return [min(PIECE, tokens - at) for at in range(0, tokens, PIECE)]


class Session:
    """A loaded decoder.

    Args:
        model: the model.onnx.
        provider: our name of an execution provider.
        changed: a serialized model to load instead, with the external data of ``model``.
    """

    def __init__(self, model: Path, provider: str = "cpu", *, changed: bytes | None = None) -> None:
        options = onnxruntime.SessionOptions()
        if provider == "directml":  # else nodes that DirectML lacks would run on the CPU
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if changed is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
        self._session = onnxruntime.InferenceSession(
            str(model) if changed is None else changed, options, providers=[PROVIDERS[provider]]
        )
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._caches = [name for name in self._inputs if name.startswith("past_key_values.")]
        self._is_static = "max_length" in self._inputs["attention_mask"].shape

    def run(
        self, token_ids: Sequence[int], pieces: Iterable[int], names: Sequence[str], *, max_length: int | None = None
    ) -> Iterator[list[NDArray[Any]]]:
        """Computes a sequence from an empty cache.

        Args:
            token_ids: the sequence.
            pieces: lengths of the chunks to feed.
            names: of the outputs to return.
            max_length: positions of a cache of fixed size; at least one more than tokens, which is the default.

        Yields:
            The outputs after each chunk.
        """
        size = max_length or len(token_ids) + 1 if self._is_static else 0
        cache = {
            name: np.zeros((1, shape[1], size, shape[3]), self._dtype(name))
            for name in self._caches
            for shape in [self._inputs[name].shape]
        }
        presents = [name.replace("past_key_values", "present") for name in self._caches]
        at = 0
        for piece in pieces:
            feeds = {
                "input_ids": np.array([token_ids[at : at + piece]]),
                "attention_mask": np.ones((1, size or at + piece)),
                "position_ids": np.arange(at, at + piece)[None],
            }
            feeds = {name: value.astype(self._dtype(name)) for name, value in feeds.items() if name in self._inputs}
            outputs = self._session.run([*names, *presents], {**feeds, **cache})
            cache = dict(zip(self._caches, outputs[len(names) :], strict=True))
            at += piece
            yield outputs[: len(names)]

    def iter_logits(self, token_ids: Sequence[int], *, steps: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Computes a sequence as a prompt, and its last ``steps`` tokens one by one.

        Yields:
            After each chunk of the prompt and after each step: the number of tokens fed, and the logits that the graph
            returns for the last of them, float32 [positions, vocab].
        """
        prompt = len(token_ids) - steps
        pieces = [*split_prompt(prompt), *[1] * steps]
        for fed, (logits,) in zip(accumulate(pieces), self.run(token_ids, pieces, ["logits"]), strict=True):
            yield fed, logits[0].astype(np.float32)

    def _dtype(self, name: str) -> type[np.generic]:
        return _TYPES[self._inputs[name].type]
