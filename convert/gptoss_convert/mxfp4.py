"""MXFP4: 4-bit E2M1 codes in blocks of 32 that share a power-of-two E8M0 scale.

Decodes without rounding, and encodes. Knows nothing of models or files. Source: OCP Microscaling Formats (MX) v1.0, §5.
Byte layout as in openai/gpt-oss-20b: two codes per byte, the even index in the low nibble; 16 bytes per block; scale
bytes biased by 127.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
VALUES: NDArray[np.float32] = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_MAX_EXPONENT = 125  # above it 6 overflows float32, and values that don't have a code at this exponent as well
LARGEST_SCALE = 127 + _MAX_EXPONENT  # as a scale byte
# [256, 2]: both values of a packed byte, so that one table look-up decodes two weights.
_PAIRS: NDArray[np.float32] = np.stack([VALUES[np.arange(256) & 15], VALUES[np.arange(256) >> 4]], axis=-1)


def decode(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decodes MXFP4 codes.

    Args:
        blocks: uint8 [..., K/32, 16], packed codes.
        scales: uint8 [..., K/32], exponents biased by 127.

    Returns:
        float32 [..., K]; exact, since an E2M1 value times a power of two within range is a float32.
    """
    pairs = _PAIRS[blocks]  # [..., K/32, 16, 2]
    values = np.ldexp(pairs, scales.astype(np.int32)[..., None, None] - 127)
    return values.reshape(*blocks.shape[:-2], blocks.shape[-2] * BLOCK)


def encode(values: NDArray[np.floating[Any]]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Encodes float values to the nearest MXFP4 codes, with the scale of least square error for each block.

    OCP's rule (floor of the exponent of the largest magnitude) clips up to a quarter of that magnitude; the next larger
    exponent never clips. The better of both is kept, so values that MXFP4 can represent are preserved exactly.

    Args:
        values: float [..., K], K a multiple of 32.

    Returns:
        blocks uint8 [..., K/32, 16] and scales uint8 [..., K/32].
    """
    grouped = np.asarray(values, np.float32).reshape(*values.shape[:-1], -1, BLOCK)
    peak = np.abs(grouped).max(axis=-1)
    floor = np.where(peak > 0, np.frexp(peak)[1] - 1 - 2, -127)  # E2M1's largest exponent is 2
    best: tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]] | None = None
    for exponent in (floor, floor + 1):
        exponent = np.clip(exponent, -127, _MAX_EXPONENT)
        scaled = np.ldexp(grouped, -exponent[..., None])
        codes = _encode_nearest(scaled)
        # in units of the smaller scale, so that no square overflows
        error = np.ldexp(((VALUES[codes] - scaled) ** 2).sum(axis=-1), 2 * (exponent - floor))
        if best is None:
            best = codes, exponent, error
        else:
            better = error < best[2]
            best = (
                np.where(better[..., None], codes, best[0]),
                np.where(better, exponent, best[1]),
                np.minimum(error, best[2]),
            )
    assert best is not None
    codes, exponent = best[0], best[1]
    packed: NDArray[np.uint8] = (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8, copy=False)
    return packed, (exponent + 127).astype(np.uint8)


def _encode_nearest(scaled: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The nearest E2M1 codes of values divided by their scale; ties go to the even code, as in IEEE rounding."""
    magnitude = np.abs(scaled)
    edges = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
    low = np.searchsorted(edges, magnitude, side="left").astype(np.uint8)
    high = np.searchsorted(edges, magnitude, side="right").astype(np.uint8)
    codes = np.where(low % 2 == 0, low, high).astype(np.uint8)
    return (codes | (np.signbit(scaled).astype(np.uint8) << 3)).astype(np.uint8, copy=False)
