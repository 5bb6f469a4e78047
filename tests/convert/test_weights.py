from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_convert.errors import CheckpointError, WorkflowError
from gptoss_convert.quantise import quantise
from gptoss_convert.weights import Recipe, RecipeResult, TensorSpec, cast, plan_layout
from gptoss_convert.writing import write

unhurried = settings(deadline=None)


def recipe(name: str, size: int, group: str = "g", error: float | None = None) -> Recipe:
    def make() -> RecipeResult:
        return RecipeResult([np.full(size, len(name), np.uint8)], error, 4.0)

    return Recipe((TensorSpec(name, ir.DataType.UINT8, (size,)),), make, group, "plain")


@unhurried
@given(st.lists(st.sampled_from((0, 1, 63, 64, 65, (1 << 20) - 1, 1 << 20, (1 << 20) + 5)), max_size=12))
def test_extents_are_aligned_and_apart(sizes: list[int]) -> None:
    recipes = [recipe(f"w{i}", size) for i, size in enumerate(sizes)]
    for limit in (None, 2 << 20):
        extents, files = plan_layout(recipes, "data", limit)
        ends = dict.fromkeys(files, 0)
        for file, start, length in extents.values():
            assert start >= ends[file]
            assert start % (1 << 16 if length >= 1 << 20 else 64) == 0
            ends[file] = start + length
        assert files == ends
        assert limit is None or max(files.values()) <= limit
        assert limit is not None or list(files) == ["data"]


def test_a_weight_that_no_file_may_hold() -> None:
    with pytest.raises(WorkflowError, match="w alone has 100 bytes"):
        plan_layout([recipe("w", 100)], "data", 99)


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_are_not_numbers_are_not_rounded(bits: int, damage: float, tmp_path: Path) -> None:
    weights = np.ones((2, 64), np.float32)
    weights[1, 40] = damage

    def make() -> RecipeResult:
        q = quantise(weights, bits=bits, block=32)
        return RecipeResult([q.packed], q.squared_error, q.squared_norm, q.max_error)

    damaged = Recipe((TensorSpec("w", ir.DataType.UINT8, (2, 8 * bits)),), make, "attention", "plain")
    with pytest.raises(CheckpointError, match="w: has weights that are not finite") as caught:
        write([damaged], tmp_path, "data")
    assert caught.value.remedy


def test_weights_beyond_a_narrower_type(tmp_path: Path) -> None:
    made = Recipe(
        (TensorSpec("w", ir.DataType.FLOAT16, (1,)),),
        lambda: cast(np.array([1e5], np.float32), np.float16),
        "g",
        "float16",
    )
    with pytest.raises(CheckpointError, match="beyond the range of float16"):
        write([made], tmp_path, "data")


@unhurried
@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=20))
def test_a_cast_reports_its_rounding(values: list[float]) -> None:
    exact = np.array(values, np.float32)
    made = cast(exact, np.float16)
    error = made.arrays[0].astype(np.float64) - exact
    assert made.squared_error == pytest.approx(float((error**2).sum()))
    assert made.max_error == float(np.abs(error).max())


def test_an_exact_cast_has_no_error() -> None:
    half = np.arange(8, dtype=np.float32).astype(ml_dtypes.bfloat16)
    assert cast(half, np.float32).squared_error is None
    assert cast(half, ml_dtypes.bfloat16).squared_error is None
