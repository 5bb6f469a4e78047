"""A converted model's first breath: onnxruntime loads it and computes a few tokens.

Knows how to feed any decoder of ours; judges only that it loads and that its logits are finite. Parity is measured
elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.errors import ConversionError

_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


def loads(model: Path) -> None:
    """Loads a model on the CPU without running it, in next to no memory: its weights stay on disk.

    Raises:
        ConversionError: it doesn't load.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    with _in_our_words(model):
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


@contextmanager
def _in_our_words(model: Path) -> Iterator[None]:
    import onnxruntime

    try:
        yield
    except Exception as error:  # onnxruntime's exceptions share no base class but this
        raise ConversionError(
            f"{model.name}: onnxruntime {onnxruntime.__version__} does not run what was made: {error}",
            remedy="Please report this; the conversion was not published.",
        ) from error


def first_breath(model: Path, token_ids: Sequence[int] = (1, 2, 3, 4)) -> NDArray[np.float32]:
    """Loads a model on the CPU and runs it once with an empty cache.

    Args:
        model: the model.onnx file.
        token_ids: what to feed.

    Returns:
        Logits, float32 [1, positions, vocab].

    Raises:
        ConversionError: it doesn't load, doesn't run, or gives a logit that is not a number.
    """
    import onnxruntime

    with _in_our_words(model):
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], first_inputs(session, token_ids))
    if not np.isfinite(logits).all():
        raise ConversionError(f"{model.name}: logits are not finite", remedy="Check the checkpoint's weights for NaN.")
    result: NDArray[np.float32] = np.asarray(logits, np.float32)
    return result


def first_inputs(session: Any, token_ids: Sequence[int]) -> dict[str, NDArray[Any]]:
    """What a decoder's session is fed with a prompt and an empty cache."""
    return {node.name: _feed(node, token_ids) for node in session.get_inputs()}


def _feed(node: Any, token_ids: Sequence[int]) -> NDArray[Any]:
    kind, length = _TYPES[node.type], len(token_ids)
    if node.name == "input_ids":
        return np.array([token_ids], kind)
    if node.name == "position_ids":
        return np.arange(length, dtype=kind)[None]
    # A cache that grows starts empty and the mask is the prompt's; one of fixed size is as long as its mask.
    sizes = {"batch": 1, "total": length, "past": 0, "max_length": length + 1}
    shape = [sizes.get(size, size) for size in node.shape]
    return np.ones(shape, kind) if node.name == "attention_mask" else np.zeros(shape, kind)
