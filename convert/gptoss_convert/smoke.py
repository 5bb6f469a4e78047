"""A converted model, loaded and run by onnxruntime on the CPU.

Knows how to feed any decoder of ours; judges only that it loads and that its logits are finite. What a model computes
is measured layer by layer in first_run.py, and against its checkpoint in parity/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    with runtime_errors(model.name):
        onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


@contextmanager
def runtime_errors(name: str) -> Iterator[None]:
    """Turns what onnxruntime raises into a ConversionError that names the model or its part."""
    import onnxruntime

    try:
        yield
    except Exception as error:  # onnxruntime's exceptions share no base class but this
        raise ConversionError(
            f"{name}: onnxruntime {onnxruntime.__version__} does not run what was made: {error}",
            remedy="Please report this; the conversion was not published.",
        ) from error


def run_once(model: Path, token_ids: Sequence[int] = (1, 2, 3, 4)) -> NDArray[np.float32]:
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

    with runtime_errors(model.name):
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], feed(session, len(token_ids), {"input_ids": np.array([token_ids])}))
    if not np.isfinite(logits).all():
        raise ConversionError(
            f"{model.name}: logits are not finite",
            remedy="Either the checkpoint's weights are damaged, or its activations leave the target's float type.",
        )
    result: NDArray[np.float32] = np.asarray(logits, np.float32)
    return result


def feed(session: Any, tokens: int, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What a session of a decoder, or of a part of one, is fed with for a prompt and an empty cache.

    Args:
        session: whose inputs.
        tokens: of the prompt.
        given: inputs that are not made here.
    """
    return {node.name: _input(node, tokens, given) for node in session.get_inputs()}


def _input(node: Any, tokens: int, given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    kind = _TYPES[node.type]
    if node.name in given:
        return given[node.name].astype(kind, copy=False)
    if node.name == "position_ids":
        return np.arange(tokens, dtype=kind)[None]
    # A cache that grows starts empty and the mask is the prompt's; one of fixed size is as long as its mask.
    sizes = {"batch": 1, "total": tokens, "past": 0, "max_length": tokens + 1}
    shape = [sizes.get(size, size) for size in node.shape]
    return np.ones(shape, kind) if node.name == "attention_mask" else np.zeros(shape, kind)
