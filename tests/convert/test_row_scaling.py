"""Scaling rows to a common size by powers of two is exact."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gptoss_convert import row_scaling
from gptoss_convert.quantise import dequantise, quantise

MATRICES = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.just(32)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


@given(MATRICES)
def test_rows_have_unit_length_and_come_back_exactly(weights: np.ndarray) -> None:
    exponents = row_scaling.compute_length_exponents(weights)
    scaled = row_scaling.scale_rows(weights, exponents)
    lengths = np.linalg.norm(scaled.astype(np.float64), axis=1)
    used = np.linalg.norm(weights.astype(np.float64), axis=1) > 1e-30
    assert (lengths <= 1 + 1e-6).all()
    assert (lengths[used] > 0.5 - 1e-6).all()
    normal = np.abs(scaled) > 1e-30
    assert (np.where(normal, scaled * row_scaling.compute_factors(exponents)[:, None], weights) == weights).all()


@given(st.lists(st.floats(0, 1e30), min_size=1))
def test_the_smallest_power_of_two_that_suffices(sizes: list[float]) -> None:
    exponents = row_scaling.compute_exponents(np.array(sizes))
    for size, exponent in zip(sizes, exponents, strict=True):
        if size == 0:
            assert exponent == 0
        elif size > 2.0**-125:
            assert 2.0 ** int(exponent - 1) < size <= 2.0 ** int(exponent)


def test_rows_without_a_size_are_not_scaled() -> None:
    assert row_scaling.compute_exponents(np.array([np.inf, np.nan, 0.0, 1.0, 2.0])).tolist() == [0, 0, 0, 0, 1]


@given(MATRICES)
def test_codes_and_errors_of_scaled_blocks_are_those_of_the_weights(weights: np.ndarray) -> None:
    plain = quantise(weights, bits=4, block=16)
    exponents = row_scaling.compute_length_exponents(weights)
    scaled = row_scaling.scale_quantised(plain, exponents)
    assert (scaled.packed == plain.packed).all()
    assert scaled.squared_error == plain.squared_error
    back = dequantise(scaled.packed, scaled.scales, bits=4, block=16) * row_scaling.compute_factors(exponents)[:, None]
    np.testing.assert_allclose(back, dequantise(plain.packed, plain.scales, bits=4, block=16), rtol=1e-6, atol=1e-30)
