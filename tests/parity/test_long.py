"""Contexts beyond 2,048 positions, where float16 stops counting, and 4,096, gpt-oss's context before YaRN.

Only such contexts test large position numbers, and full attention back to the first tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.synthetic import write_checkpoint
from tools.transformers_reference import load_transformers, transformers_logits

from .checkpoints import Changed, relative
from .conftest import SMALL
from .decoding import logits
from .test_graphs import DENSE32, directml_graph, graph

LENGTH, PIECE = 4240, 128
BORDERS = (2048, 4096)
STEPS = 8  # one at a time, to either side of a border
pytestmark = pytest.mark.integration
ONE_HEAD_A_LAYER = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sharp attention, because an average over thousands of tokens would hide which ones are attended to."""
    sharp = Changed(changes={"q_proj": lambda values: values * np.float32(4)})
    changes = SMALL | ONE_HEAD_A_LAYER | {"max_position_embeddings": LENGTH + 1}
    return write_checkpoint(tmp_path_factory.mktemp("long"), changes, seed=1, profile=sharp)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return generate_sequences(SMALL["vocab_size"], count=1, length=LENGTH)[0]


@pytest.fixture(scope="module")
def expected(checkpoint: Path, ids: list[int]) -> NDArray[np.float32]:
    return transformers_logits(load_transformers(checkpoint), ids)


def pieces() -> Iterator[int]:
    """A prompt in pieces, as on DirectML, with the tokens around the borders one by one."""
    at = 0
    for end in (*BORDERS, LENGTH):
        before = end - STEPS if end in BORDERS else end
        yield from [PIECE] * ((before - at) // PIECE)
        if (before - at) % PIECE:
            yield (before - at) % PIECE
        if end in BORDERS:
            yield from [1] * (2 * STEPS)
            at = end + STEPS


@pytest.mark.parametrize("sizes", [[LENGTH], list(pieces())], ids=["prefill", "in pieces"])
def test_the_cpus_graph(
    sizes: list[int], checkpoint: Path, ids: list[int], expected: NDArray[np.float32], tmp_path: Path
) -> None:
    assert relative(expected, logits(graph(checkpoint, tmp_path / "graph"), ids, sizes)) < 1e-5


def test_directmls_graph(checkpoint: Path, ids: list[int], expected: NDArray[np.float32], tmp_path: Path) -> None:
    model = directml_graph(checkpoint, tmp_path / "graph", "split", ir.DataType.FLOAT, **DENSE32)
    assert relative(expected, logits(model, ids, list(pieces()), max_length=LENGTH + 1)) < 1e-5
