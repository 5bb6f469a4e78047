"""Runs any decoder of ours with onnxruntime alone, in pieces of any length: what onnxruntime-genai does, laid open.

For providers and caches that genai does not put together, such as DirectML's graphs, whose cache has a fixed size, on
the CPU. Knows the names that decoders' inputs and outputs have. Imports nothing of this project, so that it can be
carried into another Python with another onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

# onnxruntime's names and options of the runtime's providers. DirectML without device_id is the CPU, in silence.
PROVIDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "directml": ("DmlExecutionProvider", {"device_id": 0}),
    "cuda": ("CUDAExecutionProvider", {}),
    "webgpu": ("WebGpuExecutionProvider", {}),
}
PIECE = 128  # tokens of a prompt computed at a time, as the runtime has it on the CPU
_TYPES: dict[str, type[np.generic]] = {
    **{"tensor(float)": np.float32, "tensor(float16)": np.float16},
    **{"tensor(int64)": np.int64, "tensor(int32)": np.int32},
}


def is_available(provider: str) -> bool:
    """Whether this onnxruntime has an execution provider, by the runtime's name for it."""
    return provider in PROVIDERS and PROVIDERS[provider][0] in onnxruntime.get_available_providers()


def pieces_of(tokens: int) -> list[int]:
    """Sizes of the pieces that a prompt is computed in."""
    return [min(PIECE, tokens - at) for at in range(0, tokens, PIECE)]


class Session:
    """A decoder, loaded.

    Args:
        model: the model.onnx.
        provider: the runtime's name of an execution provider.
        changed: the model to load in its place, serialized; its weights are looked for beside ``model``.
    """

    def __init__(self, model: Path, provider: str = "cpu", *, changed: bytes | None = None) -> None:
        options = onnxruntime.SessionOptions()
        if provider == "directml":  # a node left to the CPU would be measured there
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
        """Feeds a sequence into an empty cache.

        Args:
            token_ids: the sequence.
            pieces: how many of its tokens at a time.
            names: outputs.
            max_length: positions of a cache of fixed size; at least one more than tokens, which is the default.

        Yields:
            These outputs after each piece.
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
        """Feeds a sequence as a prompt, its last ``steps`` tokens one by one.

        Yields:
            After every prompt chunk and every step: the number of tokens fed so far, and the logits that the graph
            returned for the last of them, float32 [positions, vocab].
        """
        prompt = len(token_ids) - steps
        pieces = [*pieces_of(prompt), *[1] * steps]
        for fed, (logits,) in zip(accumulate(pieces), self.run(token_ids, pieces, ["logits"]), strict=True):
            yield fed, logits[0].astype(np.float32)

    def _dtype(self, name: str) -> type[np.generic]:
        return _TYPES[self._inputs[name].type]
