from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert import mxfp4
from gptoss_convert.quantise import dequantise, quantise
from gptoss_convert.requantise import histogram, requantise, widen

BLOCKS = hnp.arrays(np.uint8, (2, 3, 16))
SCALES = hnp.arrays(np.uint8, (2, 3), elements=st.integers(100, 140))


@given(BLOCKS, SCALES)
def test_the_reported_error_is_the_error(blocks: np.ndarray, scales: np.ndarray) -> None:
    exact = mxfp4.decode(blocks, scales).astype(np.float64)
    made = requantise(blocks, scales)
    assert made.packed.shape == (2, 48)
    error = dequantise(made.packed, made.scales, bits=4, block=32).astype(np.float64) - exact
    assert made.squared_error == pytest.approx(float((error**2).sum()), rel=1e-5)
    assert made.squared_norm == pytest.approx(float((exact**2).sum()), rel=1e-5)
    assert made.max_error == pytest.approx(float(np.abs(error).max()), rel=1e-5)


@given(hnp.arrays(np.uint8, (5, 16)))
def test_a_histogram_counts_every_code(blocks: np.ndarray) -> None:
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(5, 32)
    expected = [np.bincount(row, minlength=16) for row in codes]
    np.testing.assert_array_equal(histogram(blocks), expected)


UP_TO_THREE = [low | high << 4 for low in range(6) for high in range(6)]


@given(hnp.arrays(np.uint8, (2, 3, 16), elements=st.sampled_from(UP_TO_THREE)), SCALES)
def test_values_that_int4_can_represent_are_exact(blocks: np.ndarray, scales: np.ndarray) -> None:
    made = requantise(blocks, scales)
    assert made.squared_error == 0
    stored = dequantise(made.packed, made.scales, bits=4, block=32)
    np.testing.assert_array_equal(stored, mxfp4.decode(blocks, scales))


def test_it_beats_the_search_on_values_and_the_stock_rule() -> None:
    values = np.random.default_rng(0).standard_normal((64, 2880), np.float32)
    blocks, scales = mxfp4.encode(values)
    exact = mxfp4.decode(blocks, scales)
    ours = requantise(blocks, scales)
    assert ours.squared_error < quantise(exact, bits=4, block=32).squared_error
    grouped = exact.reshape(64, -1, 32)
    peak = np.take_along_axis(grouped, np.abs(grouped).argmax(-1, keepdims=True), -1)
    stock = np.clip(np.rint(grouped / (peak / -8)), -8, 7) * (peak / -8)
    assert ours.squared_error < 0.92 * float(np.square(stock - grouped, dtype=np.float64).sum())
    assert (ours.squared_error / ours.squared_norm) ** 0.5 < 0.064


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    blocks, scales = rng.integers(0, 256, (7, 5, 16), np.uint8), rng.integers(110, 130, (7, 5), np.uint8)
    whole = requantise(blocks, scales)
    monkeypatch.setattr("gptoss_convert.requantise._PIECE", 4)
    pieces = requantise(blocks, scales)
    np.testing.assert_array_equal(pieces.packed, whole.packed)
    np.testing.assert_array_equal(pieces.scales, whole.scales)
    assert pieces.max_error == whole.max_error


def every_byte_and_scale() -> tuple[np.ndarray, np.ndarray]:
    """Each packed byte under each finite scale, one row a scale."""
    blocks = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (253, 16, 16))
    return blocks, np.broadcast_to(np.arange(253, dtype=np.uint8)[:, None], (253, 16))


def test_widening_is_exact_for_every_byte_and_scale() -> None:
    blocks, scales = every_byte_and_scale()
    made = widen(blocks, scales)
    with np.errstate(over="ignore"):  # a step too large is to be a wrong number
        stored = dequantise(made.packed, made.scales, bits=8, block=32)
    exact = mxfp4.decode(blocks, scales)
    np.testing.assert_array_equal(stored, exact)
    assert (made.squared_error, made.max_error) == (0, 0)
    assert made.squared_norm == pytest.approx(float(np.square(exact, dtype=np.float64).sum()))


def test_requantising_keeps_every_byte_near_and_in_its_place() -> None:
    blocks, scales = every_byte_and_scale()
    made = requantise(blocks, scales)
    exact = mxfp4.decode(blocks, scales).astype(np.float64)
    error = dequantise(made.packed, made.scales, bits=4, block=32) - exact
    assert (np.abs(error) <= np.repeat(np.exp2(scales.astype(np.float64) - 127), 32, axis=-1)).all()
    assert made.squared_error == pytest.approx(float((error**2).sum()), rel=1e-5)
