"""A cache of fixed size as genai keeps it: what it held before is not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from gptoss_convert.parity.sequences import sequences
from gptoss_convert.synthetic import write_checkpoint

from .conftest import SMALL
from .decoding import logits
from .test_graphs import DENSE32, directml_graph

LENGTH, MAX_LENGTH = 80, 96


@pytest.mark.parametrize("sizes", [[LENGTH], [50, *[1] * 30]], ids=["prefill", "decode"])
def test_what_the_cache_held_is_not_seen(sizes: list[int], tmp_path: Path) -> None:
    """Neither in slots of tokens to come nor in the sink's."""
    source = write_checkpoint(tmp_path / "source", SMALL, seed=1)
    model = directml_graph(source, tmp_path / "graph", "split", ir.DataType.FLOAT, **DENSE32)
    ids = sequences(SMALL["vocab_size"], count=1, length=LENGTH)[0]
    clean, used = (logits(model, ids, sizes, max_length=MAX_LENGTH, fill=fill) for fill in (0.0, 3.0))
    np.testing.assert_allclose(used, clean, rtol=0, atol=1e-5)
