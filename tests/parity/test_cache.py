"""A fixed-size cache, as in genai: its earlier contents have no effect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.synthetic import write_checkpoint

from .conftest import SMALL
from .test_graphs import DENSE32, directml_graph

LENGTH, MAX_LENGTH = 80, 96


def logits(model: Path, ids: Sequence[int], sizes: Sequence[int], held: float) -> NDArray[np.float32]:
    """Logits [tokens, vocab] of a float32 graph whose cache is initially filled with a number."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    cache = {
        node.name: np.full((1, node.shape[1], MAX_LENGTH, node.shape[3]), held, np.float32)
        for node in session.get_inputs()
        if node.name.startswith("past_key_values.")
    }
    names, rows, at = [node.name for node in session.get_outputs()], [], 0
    for size in sizes:
        feeds = {
            "input_ids": np.array([ids[at : at + size]]),
            "position_ids": np.arange(at, at + size)[None],
            "attention_mask": np.ones((1, MAX_LENGTH), np.int64),
        }
        outputs = dict(zip(names, session.run(None, {**feeds, **cache}), strict=True))
        rows.append(outputs.pop("logits")[0])
        cache, at = {name.replace("present", "past_key_values"): value for name, value in outputs.items()}, at + size
    return np.concatenate(rows)


@pytest.mark.parametrize("sizes", [[LENGTH], [50, *[1] * 30]], ids=["prefill", "decode"])
def test_earlier_cache_contents_have_no_effect(sizes: list[int], tmp_path: Path) -> None:
    """Neither those of later tokens' slots nor those of the sink's slot."""
    source = write_checkpoint(tmp_path / "source", SMALL, seed=1)
    model = directml_graph(source, tmp_path / "graph", "split", ir.DataType.FLOAT, **DENSE32)
    ids = generate_sequences(SMALL["vocab_size"], count=1, length=LENGTH)[0]
    clean, used = (logits(model, ids, sizes, held) for held in (0.0, 3.0))
    np.testing.assert_allclose(used, clean, rtol=0, atol=1e-5)
