"""MXFP4, exactly: 4-bit E2M1 codes in blocks of 32 that share a power-of-two E8M0 scale.

Knows codes, values and scales, and converts between them without rounding. Knows nothing of models or files. Source:
OCP Microscaling Formats (MX) v1.0, §5; byte layout as in openai/gpt-oss-20b: two codes a byte, the even index in the
low nibble, 16 bytes a block, scale bytes biased by 127.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32
VALUES: NDArray[np.float32] = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_LARGEST = 125  # exponent: above it, 6 is beyond float32, and what isn't has a code at this one as well
LARGEST_SCALE = 127 + _LARGEST  # the same as a scale byte
# Both values of a packed byte at once: one table look-up decodes two weights.
_PAIRS: NDArray[np.float32] = np.stack([VALUES[np.arange(256) & 15], VALUES[np.arange(256) >> 4]], axis=-1)


def decode(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Values of MXFP4 codes.

    Args:
        blocks: uint8 [..., K/32, 16], packed codes.
        scales: uint8 [..., K/32], exponents biased by 127.

    Returns:
        float32 [..., K]; exact, since every product of an E2M1 value and a power of two within range is a float32.
    """
    pairs = _PAIRS[blocks]  # [..., K/32, 16, 2]
    values = np.ldexp(pairs, scales.astype(np.int32)[..., None, None] - 127)
    return values.reshape(*blocks.shape[:-2], blocks.shape[-2] * BLOCK)


def encode(values: NDArray[np.floating[Any]]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The nearest MXFP4 codes of float values, with the scale of each block chosen by least square error.

    OCP's rule (floor of the exponent of the largest magnitude) clips up to a quarter of that magnitude; the next
    exponent up never clips. Both are tried and the better is kept, so values that MXFP4 can hold come back exactly.

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
        exponent = np.clip(exponent, -127, _LARGEST)
        scaled = np.ldexp(grouped, -exponent[..., None])
        codes = _nearest(scaled)
        # in units of the lower scale, so that the square of no weight overflows
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


def _nearest(scaled: NDArray[np.float32]) -> NDArray[np.uint8]:
    """E2M1 codes of values already divided by their scale; ties go to the even code, as IEEE rounding does."""
    magnitude = np.abs(scaled)
    edges = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
    low = np.searchsorted(edges, magnitude, side="left").astype(np.uint8)
    high = np.searchsorted(edges, magnitude, side="right").astype(np.uint8)
    codes = np.where(low % 2 == 0, low, high).astype(np.uint8)
    return (codes | (np.signbit(scaled).astype(np.uint8) << 3)).astype(np.uint8, copy=False)
