"""Converts MXFP4 codes to int4 or int8 codes directly: int8 is exact, int4 gets each block's best candidate scale.

A block of MXFP4 has at most 15 distinct values. So the error of a candidate scale is the histogram of the block's codes
times a table of 16 errors, one matrix product gives the errors of all candidates for all blocks, and re-encoding is one
table look-up per byte. Blocks stay MXFP4's blocks of 32. Knows codes and scales; knows nothing of files or graphs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.mxfp4 import BLOCK, VALUES
from gptoss_convert.quantise import QuantisedMatrix

# Candidate steps, in units of a block's scale. At 0.5 all values up to 3.5 are exact, so smaller steps gain nothing; at
# 1.0 all integers are exact.
_SIZES = np.unique(np.concatenate([np.linspace(0.5, 1.0, 21), [6 / 7, 6 / 8, 4 / 7, 6 / 7.5]])).astype(np.float32)
# int4 reaches from -8 to 7; a negative step makes the positive side the longer one.
STEPS: NDArray[np.float32] = np.concatenate([_SIZES, -_SIZES])
_CODES = np.clip(np.rint(VALUES / STEPS[:, None]), -8, 7)  # [steps, 16]: int4 code of each E2M1 code
_ERRORS = np.abs(_CODES * STEPS[:, None] - VALUES)
_WORST = _ERRORS.max(axis=1)  # [steps]
# [16, steps], rounded to multiples of 2^-16: a block's sum, at most 200, is then exact in float32 in any order of
# additions. So BLAS gives the same best step, and the artifact the same bytes, on every machine.
_EXACT_SQUARES = np.square(_ERRORS)  # [steps, 16]
_SQUARES = np.ascontiguousarray(np.rint(_EXACT_SQUARES.T * 65536) / 65536).astype(np.float32)
_NORMS = np.square(VALUES)
_NIBBLES = (_CODES + 8).astype(np.uint8)
_BYTES = (_NIBBLES[:, np.arange(256) & 15] | (_NIBBLES[:, np.arange(256) >> 4] << 4)).reshape(-1)  # [steps * 256]
_PAIRS = np.stack([np.arange(256) & 15, np.arange(256) >> 4], -1)
_WIDE = (
    (VALUES[_PAIRS] * 2 + 128).astype(np.uint8).view(np.uint16)[:, 0]
)  # [256]: int8 codes of a byte's two E2M1 codes
_PIECE = 1 << 13  # blocks at a time, so that temporaries stay in a core's cache


def _count_table(first: int) -> NDArray[np.uint64]:
    """[65536]: for two packed bytes, counts of the 8 codes from ``first`` on, one in each byte of a uint64."""
    lanes = np.zeros((256, 8), np.uint8)
    for byte in range(256):
        for code in (byte & 15, byte >> 4):
            if first <= code < first + 8:
                lanes[byte, code - first] += 1
    one = lanes.view(np.uint64)[:, 0]
    pairs = np.arange(1 << 16)
    both: NDArray[np.uint64] = one[pairs & 255] + one[pairs >> 8]
    return both


_COUNTS_LOW, _COUNTS_HIGH = _count_table(0), _count_table(8)


def requantise(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> QuantisedMatrix:
    """Converts MXFP4 blocks to int4 codes, each block with the best of all candidate scales.

    Args:
        blocks: uint8 [..., K/32, 16], packed E2M1 codes.
        scales: uint8 [..., K/32], exponents biased by 127.

    Returns:
        packed uint8 [..., K/2] and scales float32 [..., K/32]; errors are relative to the values of the MXFP4 codes.
    """
    flat, exponents = np.ascontiguousarray(blocks).reshape(-1, BLOCK // 2), scales.reshape(-1).astype(np.int32) - 127
    packed, steps = np.empty_like(flat), np.empty(len(flat), np.float32)
    count, buffers = _Histogram(), _Buffers()
    squared_error = squared_norm = max_error = 0.0
    for at in range(0, len(flat), _PIECE):
        some, exponent = flat[at : at + _PIECE], exponents[at : at + _PIECE]
        counts = count(some)
        errors = np.matmul(counts, _SQUARES, out=buffers.errors[: len(some)])
        best = errors.argmin(axis=1)
        index = np.add(best[:, None] << 8, some, out=buffers.index[: len(some)])
        np.take(_BYTES, index, out=packed[at : at + _PIECE], mode="clip")  # always in range; other modes make a copy
        np.ldexp(STEPS[best], exponent, out=steps[at : at + _PIECE])
        square = np.ldexp(np.float64(1), 2 * exponent)
        squared_error += float(np.einsum("bc,bc->b", counts, _EXACT_SQUARES[best]) @ square)
        squared_norm += float((counts @ _NORMS) @ square)
        max_error = _update_max_error(max_error, counts, best, exponent)
    return QuantisedMatrix(
        packed.reshape(*blocks.shape[:-2], -1), steps.reshape(scales.shape), squared_error, squared_norm, max_error
    )


def _update_max_error(
    max_error: float, counts: NDArray[np.float32], best: NDArray[np.intp], exponent: NDArray[np.int32]
) -> float:
    """The larger of ``max_error`` and the blocks' errors; computes only blocks that can exceed it."""
    possible = np.flatnonzero(np.ldexp(_WORST[best], exponent) > max_error)
    worst = ((counts[possible] > 0) * _ERRORS[best[possible]]).max(axis=1, initial=0)
    return max(max_error, float(np.ldexp(worst.astype(np.float64), exponent[possible]).max(initial=0.0)))


def widen(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> QuantisedMatrix:
    """Converts MXFP4 blocks to int8 codes. Exact, since twice an E2M1 value is an integer of at most 12.

    Args:
        blocks: uint8 [..., K/32, 16], packed E2M1 codes.
        scales: uint8 [..., K/32], exponents biased by 127.

    Returns:
        packed uint8 [..., K], the zero point 128, and scales float32 [..., K/32].
    """
    steps = np.ldexp(np.float32(0.5), scales.astype(np.int32) - 127)
    packed = np.take(_WIDE, blocks).view(np.uint8).reshape(*blocks.shape[:-2], -1)
    norms = (histogram(blocks.reshape(-1, BLOCK // 2)) @ _NORMS).astype(np.float64)
    squares = np.ldexp(np.float64(1), 2 * (scales.reshape(-1).astype(np.int32) - 127))
    return QuantisedMatrix(packed, steps, 0.0, float(norms @ squares), 0.0)


class _Buffers:
    """Temporaries that all pieces share: allocating new ones takes as long as the computation in them."""

    def __init__(self) -> None:
        self.errors = np.empty((_PIECE, len(STEPS)), np.float32)
        self.index = np.empty((_PIECE, BLOCK // 2), np.intp)


class _Histogram:
    """Counts each E2M1 code in each block: [N, 16] from packed codes [N, 16], N at most a piece.

    The next call overwrites the result.
    """

    def __init__(self) -> None:
        self._pairs = np.empty((BLOCK // 4, _PIECE), np.intp)  # transposed: sums then add whole rows
        self._lanes = np.empty(self._pairs.shape, np.uint64)
        self._packed = np.empty((_PIECE, 2), np.uint64)
        self._counts = np.empty((_PIECE, 16), np.float32)

    def __call__(self, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = len(blocks)
        pairs, lanes = (
            whole.reshape(-1)[: BLOCK // 4 * size].reshape(-1, size) for whole in (self._pairs, self._lanes)
        )
        np.copyto(pairs, blocks.view(np.uint16).T)
        for half, table in enumerate((_COUNTS_LOW, _COUNTS_HIGH)):
            np.take(table, pairs, out=lanes, mode="clip")
            np.add.reduce(lanes, axis=0, out=self._packed[:size, half])
        counts = self._counts[:size]
        np.copyto(counts, self._packed[:size].view(np.uint8))
        return counts


def histogram(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Counts each E2M1 code in each block: float32 [N, 16] from packed codes uint8 [N, 16]."""
    flat, count = np.ascontiguousarray(blocks), _Histogram()
    counts = np.empty((len(flat), 16), np.float32)
    for at in range(0, len(flat), _PIECE):
        counts[at : at + _PIECE] = count(flat[at : at + _PIECE])
    return counts
