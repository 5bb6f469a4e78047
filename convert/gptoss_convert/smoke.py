"""A smoke test: loads a converted model in onnxruntime on the CPU and runs it.

Knows how to feed any decoder of ours. Checks only that it loads and that its logits are finite; first_run.py measures
its values layer by layer, and parity/ compares it with its checkpoint.
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


def require_loadable(model: Path) -> None:
    """Loads a model on the CPU without running it. It takes almost no memory: the weights stay on disk.

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
    """Turns onnxruntime's exceptions into a ConversionError that names the model or its part."""
    import onnxruntime

    try:
        yield
    except Exception as error:  # onnxruntime's exceptions have no other common base class
        raise ConversionError(
            f"{name}: onnxruntime {onnxruntime.__version__} cannot run the converted model: {error}",
            remedy="Please report this; the conversion was not published.",
        ) from error


def run_once(model: Path, token_ids: Sequence[int] = (1, 2, 3, 4)) -> NDArray[np.float32]:
    """Loads a model on the CPU and runs it once with an empty cache.

    Args:
        model: the model.onnx file.
        token_ids: the prompt.

    Returns:
        Logits, float32 [1, positions, vocab].

    Raises:
        ConversionError: it doesn't load, doesn't run, or gives a logit that is not finite.
    """
    import onnxruntime

    with runtime_errors(model.name):
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], feed(session, len(token_ids), {"input_ids": np.array([token_ids])}))
    if not np.isfinite(logits).all():
        raise ConversionError(
            f"{model.name}: logits are not finite",
            remedy="Either the checkpoint's weights are damaged, or its activations exceed the target's float type.",
        )
    result: NDArray[np.float32] = np.asarray(logits, np.float32)
    return result


def feed(session: Any, tokens: int, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Builds the inputs of a decoder's session, or of a part's, for a prompt and an empty cache.

    Args:
        session: the onnxruntime session.
        tokens: length of the prompt.
        given: the inputs that depend on the prompt, by name.

    Returns:
        Every input by name.
    """
    return {node.name: _input(node, tokens, given) for node in session.get_inputs()}


def _input(node: Any, tokens: int, given: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    kind = _TYPES[node.type]
    if node.name in given:
        return given[node.name].astype(kind, copy=False)
    if node.name == "position_ids":
        return np.arange(tokens, dtype=kind)[None]
    # A growing cache starts empty, and the mask covers the prompt; a cache of fixed size is as long as its mask.
    sizes = {"batch": 1, "total": tokens, "past": 0, "max_length": tokens + 1}
    shape = [sizes.get(size, size) for size in node.shape]
    return np.ones(shape, kind) if node.name == "attention_mask" else np.zeros(shape, kind)
