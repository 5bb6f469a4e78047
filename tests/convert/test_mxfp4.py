from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert import mxfp4

MAGNITUDES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def slow(blocks: np.ndarray, scales: np.ndarray) -> list[float]:
    """One code at a time, from the specification's text."""
    values = []
    for packed, scale in zip(blocks.reshape(-1, 16).tolist(), scales.reshape(-1).tolist(), strict=True):
        for byte in packed:
            for code in (byte & 15, byte >> 4):
                sign = -1.0 if code & 8 else 1.0
                values.append(sign * MAGNITUDES[code & 7] * 2.0 ** (scale - 127))
    return values


BLOCKS = hnp.arrays(np.uint8, (2, 3, 16))
SCALES = hnp.arrays(np.uint8, (2, 3), elements=st.integers(2, 250))  # 2.0 ** and float32 agree on these


@given(BLOCKS, SCALES)
def test_values_are_those_of_the_specification(blocks: np.ndarray, scales: np.ndarray) -> None:
    assert mxfp4.decode(blocks, scales).reshape(-1).tolist() == slow(blocks, scales)


@given(BLOCKS, SCALES)
def test_what_mxfp4_holds_comes_back(blocks: np.ndarray, scales: np.ndarray) -> None:
    values = mxfp4.decode(blocks, scales)
    again = mxfp4.decode(*mxfp4.encode(values))
    np.testing.assert_array_equal(again, values)


@given(hnp.arrays(np.float32, (3, 32), elements=st.floats(-1e6, 1e6, width=32)))
def test_no_code_of_the_same_scale_is_nearer(values: np.ndarray) -> None:
    blocks, scales = mxfp4.encode(values)
    grid = np.array([s * m for m in MAGNITUDES for s in (1, -1)], np.float64)
    reachable = grid * np.exp2(scales.astype(np.float64) - 127)[..., None]  # [3, 1, 16]
    nearest = np.abs(values[..., None] - reachable).min(axis=-1)
    error = np.abs(mxfp4.decode(blocks, scales) - values.astype(np.float64))
    np.testing.assert_allclose(error, nearest, rtol=1e-6, atol=1e-30)


def test_zeros_and_shapes() -> None:
    blocks, scales = mxfp4.encode(np.zeros((5, 2, 64), np.float32))
    assert blocks.shape == (5, 2, 2, 16)
    assert scales.shape == (5, 2, 2)
    assert not mxfp4.decode(blocks, scales).any()


def test_transformers_reads_the_same_bytes_the_same() -> None:
    torch = pytest.importorskip("torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (4, 6, 2, 16), np.uint8)
    scales = rng.integers(110, 135, (4, 6, 2), np.uint8)
    theirs = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
    ours = mxfp4.decode(blocks, scales)  # [E, N, K]; transformers gives [E, K, N]
    np.testing.assert_array_equal(theirs.transpose(1, 2).numpy(), ours)
