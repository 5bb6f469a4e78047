from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime_genai.models.loaders.gptoss import GptOssMXFP4Loader
from onnxruntime_genai.models.quantization.cuda_quantizer import CudaQuantizer

from gptoss_convert.layout_cuda import interleave, transpose_nibbles
from tests import cuda_layout as reference

unhurried = settings(deadline=None)
PAIRS = st.integers(1, 40)  # of rows
MATRICES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))


def random_codes(rows: int, nbytes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, nbytes), np.uint8)


@unhurried
@given(PAIRS, st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_mxfp4_comes_back_bit_for_bit(pairs: int, blocks: int, seed: int) -> None:
    codes = random_codes(2 * pairs, 16 * blocks, seed)
    laid = transpose_nibbles(codes)
    assert laid.shape == (32 * blocks, pairs)
    np.testing.assert_array_equal(reference.to_cpu_layout(laid, 2 * pairs, "mxfp4"), codes)


@unhurried
@pytest.mark.parametrize("bits", [4, 8])
@given(MATRICES)
def test_integers_come_back_bit_for_bit(bits: int, matrix: tuple[int, int, int]) -> None:
    tiles, across, seed = matrix
    codes = random_codes(4 * tiles, 64 * across * bits // 8, seed)
    laid = interleave(codes, bits)
    assert laid.shape == (64 * across, 4 * tiles * bits // 8)
    np.testing.assert_array_equal(reference.to_cpu_layout(laid, 4 * tiles, f"int{bits}"), codes)


@pytest.mark.parametrize(("kind", "bits"), [("mxfp4", 4), ("int4", 4), ("int8", 8)])
def test_every_weight_has_its_own_position(kind: str, bits: int) -> None:
    n, k = np.indices((16, 128))
    places = reference.locate_mxfp4(n, k, 16, 128) if kind == "mxfp4" else reference.locate_integer(n, k, 16, 128, bits)
    np.testing.assert_array_equal(np.sort(places.reshape(-1)), np.arange(16 * 128))


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (128, 192), (192, 2880), (1040, 128)])
def test_the_bytes_are_those_of_genais_builder(rows: int, columns: int) -> None:
    """genai says that it compares its packers with onnxruntime's on a GPU."""
    blocks = random_codes(rows, columns // 2, 0)
    theirs = GptOssMXFP4Loader.pack_blocks_for_qmoe(None, torch.from_numpy(blocks.reshape(1, rows, -1, 16)))
    np.testing.assert_array_equal(transpose_nibbles(blocks), theirs[0].numpy())
    for bits in (4, 8):
        codes = random_codes(rows, columns * bits // 8, bits)
        packed = CudaQuantizer.prepack_matmulnbits_weight(codes, rows, columns, bits)
        np.testing.assert_array_equal(interleave(codes, bits).reshape(-1), packed.reshape(-1))
