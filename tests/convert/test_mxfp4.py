from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert import mxfp4

unhurried = settings(deadline=None)
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
SCALES = hnp.arrays(np.uint8, (2, 3), elements=st.integers(0, 252))  # above these 6 is beyond float32


@unhurried
@given(BLOCKS, SCALES)
def test_values_are_those_of_the_specification(blocks: np.ndarray, scales: np.ndarray) -> None:
    assert mxfp4.decode(blocks, scales).reshape(-1).tolist() == slow(blocks, scales)


@unhurried
@given(BLOCKS, SCALES)
def test_mxfp4_values_are_quantised_exactly(blocks: np.ndarray, scales: np.ndarray) -> None:
    values = mxfp4.decode(blocks, scales)
    again = mxfp4.decode(*mxfp4.encode(values))
    np.testing.assert_array_equal(again, values)


def test_every_byte_at_every_scale_is_quantised_exactly() -> None:
    blocks = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (253, 16, 16))  # a 6 in each
    scales = np.broadcast_to(np.arange(253, dtype=np.uint8)[:, None], (253, 16))
    again = mxfp4.encode(mxfp4.decode(blocks, scales))
    np.testing.assert_array_equal(again[0], blocks)
    np.testing.assert_array_equal(again[1], scales)


@unhurried
@given(BLOCKS, SCALES)
def test_zeros_keep_their_sign(blocks: np.ndarray, scales: np.ndarray) -> None:
    values = mxfp4.decode(blocks, scales)
    np.testing.assert_array_equal(np.signbit(mxfp4.decode(*mxfp4.encode(values))), np.signbit(values))


@unhurried
@given(hnp.arrays(np.float32, (3, 32), elements=st.floats(-1e6, 1e6, width=32)))
def test_the_scale_is_no_worse_than_the_rule_nor_than_the_next(values: np.ndarray) -> None:
    grid = np.array([s * m for m in MAGNITUDES for s in (1, -1)], np.float64)

    def squared_error(exponents: np.ndarray) -> np.ndarray:
        reachable = grid * np.exp2(exponents)[..., None]  # [3, 1, 16]
        return np.asarray((np.abs(values[..., None] - reachable).min(axis=-1) ** 2).sum(axis=-1, keepdims=True))

    peak = np.maximum(np.abs(values.astype(np.float64)).max(axis=-1, keepdims=True), 2.0**-125)
    rule = np.floor(np.log2(peak)) - 2  # as OCP's specification has it: 4 is E2M1's largest power of two
    chosen = squared_error(mxfp4.encode(values)[1].astype(np.float64) - 127)
    for exponents in (rule, rule + 1):
        assert (chosen <= squared_error(exponents) * 1.0001).all()


@pytest.mark.parametrize("value", [np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1e-45])
def test_values_at_the_ends_of_float32_stay_finite(value: float) -> None:
    values = np.full((1, 32), value, np.float32)
    values[0, 1::2] *= -1
    stored = mxfp4.decode(*mxfp4.encode(values))
    assert np.isfinite(stored).all()
    assert (np.abs(stored - values) <= max(value / 3, 2.0**-129)).all()  # a quarter of the largest is clipped


@unhurried
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # the codes have three significant bits, bfloat16 eight
def test_transformers_reads_the_same_bytes_the_same(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (4, 6, 2, 16), np.uint8)
    scales = rng.integers(110, 135, (4, 6, 2), np.uint8)
    theirs = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=getattr(torch, dtype))
    ours = mxfp4.decode(blocks, scales)  # [E, N, K]; transformers gives [E, K, N]
    np.testing.assert_array_equal(theirs.transpose(1, 2).float().numpy(), ours)
