"""Divergences compared with their definition, over the whole vocabulary and with a bucket for unlikely tokens."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptoss_convert.parity.metrics import Comparison, Distributions, compare

LOGITS = arrays.arrays(np.float32, (7, 12), elements=st.floats(-60, 60, width=32))
Logits = NDArray[np.float32]


def probabilities(logits: Logits) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float64] = powers / powers.sum(axis=-1, keepdims=True)
    return result


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    tiny = np.finfo(np.float64).tiny
    result: NDArray[np.float64] = (p * np.log(np.maximum(p, tiny) / np.maximum(q, tiny))).sum(axis=-1)
    return result


@given(LOGITS, LOGITS)
def test_by_definition(reference: Logits, other: Logits) -> None:
    found = compare(reference, other)
    np.testing.assert_allclose(found.kl, divergence(probabilities(reference), probabilities(other)), atol=1e-9)
    np.testing.assert_array_equal(found.same_top, reference.argmax(-1) == other.argmax(-1))
    np.testing.assert_array_equal(found.max_abs, np.abs(reference.astype(np.float64) - other).max(-1))


@given(LOGITS, LOGITS, st.integers(1, 12))
def test_a_bucket_gives_the_divergence_of_the_coarser_distribution(reference: Logits, other: Logits, kept: int) -> None:
    some = Distributions(reference).top_k(kept)
    assert some.ids is not None
    found, exact = compare(some, other), compare(reference, other)
    p, q = (np.take_along_axis(probabilities(x), some.ids, axis=-1) for x in (reference, other))
    if kept < 12:
        p, q = (np.c_[kept_ones, 1 - kept_ones.sum(-1)] for kept_ones in (p, q))
        q[:, -1] = np.maximum(q[:, -1], 1e-300)
    reliable = (q[:, -1] > 1e-9) | (p[:, -1] < 1e-15)
    np.testing.assert_allclose(found.kl[reliable], divergence(p, np.maximum(q, 0))[reliable], atol=1e-5)
    assert (found.kl <= exact.kl + 1e-9).all()
    assert (found.max_abs <= exact.max_abs).all()
    np.testing.assert_array_equal(found.same_top, exact.same_top)
    if kept == 12:
        np.testing.assert_allclose(found.kl, exact.kl, atol=1e-12)


@given(LOGITS, st.integers(1, 12))
def test_the_divergence_from_itself_is_zero(reference: Logits, kept: int) -> None:
    found = compare(Distributions(reference).top_k(kept), reference)
    assert found.kl.max() < 1e-12
    assert found.max_abs.max() == 0
    assert found.same_top.all()


def test_the_smallest_divergences_are_exact() -> None:
    """Shifting all logits changes nothing; shifting one by e gives p(1 - p)e²/2."""
    logits = np.zeros((1, 4), np.float32)
    assert compare(logits, logits + 1000).kl == 0
    moved = logits.copy()
    moved[0, 2] = 1e-5
    np.testing.assert_allclose(compare(logits, moved).kl, 0.25 * 0.75 * np.float32(1e-5) ** 2 / 2, rtol=1e-3)


def test_figures() -> None:
    figures = Comparison(np.arange(5.0), np.array([0, 1, 2, 3, 94.0]), np.array([True] * 4 + [False])).figures()
    assert figures == {
        **{"tokens": 5, "max_abs": 4, "mean_kl": 20, "median_kl": 2, "max_kl": 94, "top1": 0.8},
        **{"p90_kl": pytest.approx(57.6), "p99_kl": pytest.approx(90.36)},
    }


@pytest.mark.parametrize("shape", [(7, 11), (6, 12)])
def test_other_shapes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="logits of shape"):
        compare(np.zeros((7, 12), np.float32), np.zeros(shape, np.float32))
