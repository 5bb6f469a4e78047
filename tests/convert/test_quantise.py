from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

from gptoss_convert.quantise import QuantisedMatrix, dequantise, quantise

WEIGHTS = hnp.arrays(np.float32, (3, 64), elements=st.floats(-100, 100, width=32))
BITS = st.sampled_from((4, 8))
unhurried = settings(deadline=None)


@unhurried
@given(WEIGHTS, BITS, st.sampled_from((16, 32, 64)))
def test_the_reported_error_is_the_error(weights: np.ndarray, bits: int, block: int) -> None:
    made = quantise(weights, bits=bits, block=block)
    stored = dequantise(made.packed, made.scales, bits=bits, block=block)
    error = stored.astype(np.float64) - weights
    assert made.squared_error == pytest.approx(float((error**2).sum()), rel=1e-4, abs=1e-9)
    assert made.max_error == pytest.approx(float(np.abs(error).max()), rel=1e-5, abs=1e-7)
    assert made.squared_norm == pytest.approx(float((weights.astype(np.float64) ** 2).sum()), rel=1e-6)


@unhurried
@given(WEIGHTS)
def test_int8_is_within_half_a_step(weights: np.ndarray) -> None:
    made = quantise(weights, bits=8, block=32)
    stored = dequantise(made.packed, made.scales, bits=8, block=32)
    steps = np.repeat(made.scales, 32, axis=-1)
    assert (np.abs(stored - weights) <= steps * 0.501 + 1e-9).all()


@unhurried
@given(WEIGHTS)
def test_the_search_is_never_worse_than_the_peak_on_minus_eight(weights: np.ndarray) -> None:
    grouped = weights.reshape(3, 2, 32)
    peak = np.take_along_axis(grouped, np.abs(grouped).argmax(-1, keepdims=True), -1)
    scale = peak / -8
    plain = np.clip(np.rint(grouped / np.where(scale == 0, 1, scale)), -8, 7) * scale
    stock = float(((plain - grouped).astype(np.float64) ** 2).sum())
    assert quantise(weights, bits=4, block=32).squared_error <= stock * 1.0001 + 1e-9


@unhurried
@given(WEIGHTS)
def test_int4_is_within_what_the_search_may_clip(weights: np.ndarray) -> None:
    made = quantise(weights, bits=4, block=32)
    stored = dequantise(made.packed, made.scales, bits=4, block=32)
    peak = np.abs(weights.reshape(3, 2, 32)).max(-1)
    assert (np.abs(made.scales) <= peak / 8 * 1.0001).all()
    assert (np.abs(stored - weights) <= np.repeat(peak * 0.3001, 32, axis=-1) + 1e-30).all()  # 7 steps of 0.8/8 remain


@pytest.mark.parametrize("bits", [4, 8])
def test_a_block_of_zeros_stays_one_beside_others(bits: int) -> None:
    weights = np.ones((2, 96), np.float32)
    weights[:, 32:64] = 0
    made = quantise(weights, bits=bits, block=32)
    assert (made.scales[:, 1] == 0).all()
    stored = dequantise(made.packed, made.scales, bits=bits, block=32)
    np.testing.assert_allclose(stored, weights, atol=1e-6)
    nothing = quantise(np.zeros((2, 32)), bits=bits, block=32)
    assert (nothing.squared_error, nothing.squared_norm, nothing.max_error) == (0, 0, 0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1e-38, 1e-44, 1e30])
def test_weights_of_any_size_have_a_step(bits: int, size: float) -> None:
    weights = np.random.default_rng(2).uniform(-1, 1, (4, 64)).astype(np.float32) * np.float32(size)
    with np.errstate(over="ignore"):  # int4's squares of 1e30, among which none is least then
        made = quantise(weights, bits=bits, block=32)
    stored = dequantise(made.packed, made.scales, bits=bits, block=32)
    assert np.isfinite(stored).all()
    least = 127 * np.finfo(np.float32).smallest_subnormal  # under it there is no scale but zero
    assert (np.abs(stored - weights) <= max(np.abs(weights).max() * 0.5, least)).all()


def test_the_even_weight_is_in_the_low_nibble() -> None:
    weights = np.zeros((1, 32), np.float32)
    weights[0, 0], weights[0, 1] = -8, 7
    made = quantise(weights, bits=4, block=32)
    stored = dequantise(made.packed, made.scales, bits=4, block=32)
    np.testing.assert_array_equal(stored, weights)
    assert made.packed[0, 0] & 15 == 0
    assert made.packed[0, 0] >> 4 == 15


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).standard_normal((7, 5, 64), np.float32)
    whole = quantise(weights, bits=4, block=32)
    monkeypatch.setattr("gptoss_convert.quantise._PIECE", 200)
    pieces = quantise(weights, bits=4, block=32)
    np.testing.assert_array_equal(pieces.packed, whole.packed)
    np.testing.assert_array_equal(pieces.scales, whole.scales)
    assert pieces.squared_error == pytest.approx(whole.squared_error)
    assert whole.packed.shape == (7, 5, 32)
    assert whole.scales.shape == (7, 5, 2)


@pytest.mark.parametrize(("bits", "block", "columns"), [(3, 32, 64), (4, 32, 40), (8, 64, 32)])
def test_shapes_that_cannot_be_quantised(bits: int, block: int, columns: int) -> None:
    with pytest.raises(ValueError, match="cannot quantise"):
        quantise(np.zeros((1, columns), np.float32), bits=bits, block=block)


def matmul_nbits(x: np.ndarray, made: QuantisedMatrix, *, bits: int, block: int, accuracy_level: int) -> np.ndarray:
    """x · Wᵀ by onnxruntime, in a model of this one node."""
    (rows, blocks), columns = made.scales.shape, x.shape[1]
    initializers: dict[str, Any] = {
        "w": made.packed.reshape(rows, blocks, block * bits // 8),
        "scales": made.scales,
    }
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "scales"], ["y"], domain="com.microsoft", K=columns, N=rows, bits=bits,
        block_size=block, accuracy_level=accuracy_level,
    )  # fmt: skip
    shapes = [helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", columns), ("y", rows))]
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph([node], "g", shapes[:1], shapes[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize("tokens", [1, 5])  # a vector and a matrix take different kernels
@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (4, 128), (8, 32)])
def test_onnxruntime_computes_with_the_same_values(bits: int, block: int, tokens: int) -> None:
    rng = np.random.default_rng(1)
    weights, x = rng.standard_normal((24, 256), np.float32), rng.standard_normal((tokens, 256), np.float32)
    made = quantise(weights, bits=bits, block=block)
    expected = x @ dequantise(made.packed, made.scales, bits=bits, block=block).T
    exact = matmul_nbits(x, made, bits=bits, block=block, accuracy_level=1)
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-4)
    rounded = matmul_nbits(x, made, bits=bits, block=block, accuracy_level=4)
    assert np.linalg.norm(rounded - expected) < 0.01 * np.linalg.norm(expected)  # activations in int8
