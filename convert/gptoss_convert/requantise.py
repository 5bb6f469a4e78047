"""MXFP4 to int4 and int8 without leaving the codes: int8 is exact, int4 gets the best of many scales a block.

A block of MXFP4 holds at most 15 distinct values, so the error of a candidate scale is the histogram of its codes times
a table of 16 errors, all candidates of all blocks are one matrix product, and re-encoding is a look-up a byte. Knows
codes and scales; knows nothing of files or graphs. Blocks stay MXFP4's blocks of 32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.mxfp4 import BLOCK, VALUES
from gptoss_convert.quantise import QuantisedMatrix

# Candidate steps, in units of a block's scale: at 0.5 everything up to 3.5 is exact, so nothing smaller is worth
# having, and at 1.0 every whole number is.
_SIZES = np.unique(np.concatenate([np.linspace(0.5, 1.0, 21), [6 / 7, 6 / 8, 4 / 7, 6 / 7.5]])).astype(np.float32)
# int4 reaches one step further on one side than on the other; a negative step turns it round.
STEPS: NDArray[np.float32] = np.concatenate([_SIZES, -_SIZES])
_CODES = np.clip(np.rint(VALUES / STEPS[:, None]), -8, 7)  # [steps, 16], int4 code of each E2M1 code
_ERRORS = np.abs(_CODES * STEPS[:, None] - VALUES)
_WORST = _ERRORS.max(axis=1)  # [steps]
# [16, steps], in whole 2^-16: a block's sum, at most 200, is then exact in float32 in whatever order BLAS adds, and the
# best step, and so the artifact's bytes, are the same on every machine.
_EXACT_SQUARES = np.square(_ERRORS)  # [steps, 16]
_SQUARES = np.ascontiguousarray(np.rint(_EXACT_SQUARES.T * 65536) / 65536).astype(np.float32)
_NORMS = np.square(VALUES)
_NIBBLES = (_CODES + 8).astype(np.uint8)
_BYTES = (_NIBBLES[:, np.arange(256) & 15] | (_NIBBLES[:, np.arange(256) >> 4] << 4)).reshape(-1)  # [steps * 256]
_PAIRS = np.stack([np.arange(256) & 15, np.arange(256) >> 4], -1)
_WIDE = (VALUES[_PAIRS] * 2 + 128).astype(np.uint8).view(np.uint16)[:, 0]  # [256], int8 codes of a byte's two E2M1
_PIECE = 1 << 13  # blocks at a time: temporaries that stay in a core's cache


def _lanes(first: int) -> NDArray[np.uint64]:
    """For every two packed bytes, how often each of 8 codes is in them: a count in each byte of a uint64."""
    lanes = np.zeros((256, 8), np.uint8)
    for byte in range(256):
        for code in (byte & 15, byte >> 4):
            if first <= code < first + 8:
                lanes[byte, code - first] += 1
    one = lanes.view(np.uint64)[:, 0]
    pairs = np.arange(1 << 16)
    both: NDArray[np.uint64] = one[pairs & 255] + one[pairs >> 8]
    return both


_LOW, _HIGH = _lanes(0), _lanes(8)


def requantise(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> QuantisedMatrix:
    """The int4 codes of MXFP4 blocks, each block's scale the best of all candidates.

    Args:
        blocks: uint8 [..., K/32, 16], packed E2M1 codes.
        scales: uint8 [..., K/32], exponents biased by 127.

    Returns:
        packed uint8 [..., K/2] and scales float32 [..., K/32]; errors are exact, of the values MXFP4 stands for.
    """
    flat, exponents = np.ascontiguousarray(blocks).reshape(-1, BLOCK // 2), scales.reshape(-1).astype(np.int32) - 127
    packed, steps = np.empty_like(flat), np.empty(len(flat), np.float32)
    count, room = _Histogram(), _Room()
    squared_error = squared_norm = max_error = 0.0
    for at in range(0, len(flat), _PIECE):
        some, exponent = flat[at : at + _PIECE], exponents[at : at + _PIECE]
        counts = count(some)
        errors = np.matmul(counts, _SQUARES, out=room.errors[: len(some)])
        best = errors.argmin(axis=1)
        index = np.add(best[:, None] << 8, some, out=room.index[: len(some)])
        np.take(_BYTES, index, out=packed[at : at + _PIECE], mode="clip")  # in range; other modes take a copy
        np.ldexp(STEPS[best], exponent, out=steps[at : at + _PIECE])
        square = np.ldexp(np.float64(1), 2 * exponent)
        squared_error += float(np.einsum("bc,bc->b", counts, _EXACT_SQUARES[best]) @ square)
        squared_norm += float((counts @ _NORMS) @ square)
        max_error = _larger(max_error, counts, best, exponent)
    return QuantisedMatrix(
        packed.reshape(*blocks.shape[:-2], -1), steps.reshape(scales.shape), squared_error, squared_norm, max_error
    )


def _larger(
    max_error: float, counts: NDArray[np.float32], best: NDArray[np.intp], exponent: NDArray[np.int32]
) -> float:
    """The largest error, where only blocks that can have a larger one than is known are looked at."""
    possible = np.flatnonzero(np.ldexp(_WORST[best], exponent) > max_error)
    worst = ((counts[possible] > 0) * _ERRORS[best[possible]]).max(axis=1, initial=0)
    return max(max_error, float(np.ldexp(worst.astype(np.float64), exponent[possible]).max(initial=0.0)))


def widen(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> QuantisedMatrix:
    """The int8 codes of MXFP4 blocks: exact, since twice an E2M1 value is a whole number of at most 12.

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


class _Room:
    """Temporaries that every piece uses again: to map them anew takes as long as the work in them."""

    def __init__(self) -> None:
        self.errors = np.empty((_PIECE, len(STEPS)), np.float32)
        self.index = np.empty((_PIECE, BLOCK // 2), np.intp)


class _Histogram:
    """How often each E2M1 code occurs in each block: [N, 16] from packed codes [N, 16], N up to a piece.

    What is returned is overwritten by the next call.
    """

    def __init__(self) -> None:
        self._pairs = np.empty((BLOCK // 4, _PIECE), np.intp)  # the other way round: sums are then of whole rows
        self._lanes = np.empty(self._pairs.shape, np.uint64)
        self._packed = np.empty((_PIECE, 2), np.uint64)
        self._counts = np.empty((_PIECE, 16), np.float32)

    def __call__(self, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        size = len(blocks)
        pairs, lanes = (
            whole.reshape(-1)[: BLOCK // 4 * size].reshape(-1, size) for whole in (self._pairs, self._lanes)
        )
        np.copyto(pairs, blocks.view(np.uint16).T)
        for half, table in enumerate((_LOW, _HIGH)):
            np.take(table, pairs, out=lanes, mode="clip")
            np.add.reduce(lanes, axis=0, out=self._packed[:size, half])
        counts = self._counts[:size]
        np.copyto(counts, self._packed[:size].view(np.uint8))
        return counts


def histogram(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How often each E2M1 code occurs in each block, float32 [N, 16] from packed codes uint8 [N, 16]."""
    flat, count = np.ascontiguousarray(blocks), _Histogram()
    counts = np.empty((len(flat), 16), np.float32)
    for at in range(0, len(flat), _PIECE):
        counts[at : at + _PIECE] = count(flat[at : at + _PIECE])
    return counts
