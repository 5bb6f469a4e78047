"""Symmetric block quantisers for the integer kernels, with their error.

Knows codes, scales and errors of one matrix; knows nothing of files or graphs. Codes are unsigned. Their zero point is
half their range (8 of 16, 128 of 256), which MatMulNBits and QMoE assume when none is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
# Candidates for the value of int4's outermost code, as fractions of the largest magnitude: clipping the peak a little
# gives the other weights a finer step. On Gaussian and MXFP4 weights all minima were found in this range.
_SHRINK = np.linspace(0.80, 1.0, 9, dtype=np.float32)
_PIECE = 1 << 17  # weights at a time, so that temporaries stay in a core's cache


@dataclass(frozen=True)
class QuantisedMatrix:
    """One quantised matrix.

    Attributes:
        packed: uint8 [..., K·bits/8]; for 4 bits the even index is in the low nibble.
        scales: float32 [..., K/block]; float8_e8m0 exponents if the codes are MXFP4.
        squared_error: sum over all weights of (dequantised - exact)².
        squared_norm: sum over all weights of exact².
        max_error: largest |dequantised - exact|.
    """

    packed: NDArray[np.uint8]
    scales: Float32
    squared_error: float
    squared_norm: float
    max_error: float


def quantise(weights: NDArray[np.floating[Any]], *, bits: int, block: int) -> QuantisedMatrix:
    """Quantises along the last axis; int4 scales are searched for the least square error of their block.

    Args:
        weights: float [..., K]; K a multiple of ``block``.
        bits: 4 or 8.
        block: number of weights that share a scale.

    Raises:
        ValueError: K is not a multiple of ``block``, or ``bits`` is neither 4 nor 8.
    """
    if bits not in (4, 8) or weights.shape[-1] % block:
        raise ValueError(f"cannot quantise [..., {weights.shape[-1]}] to {bits} bits in blocks of {block}")
    columns = weights.shape[-1]
    rows = weights.reshape(-1, columns)
    step = max(1, _PIECE // columns)
    pieces = [_quantise(rows[at : at + step], bits, block) for at in range(0, len(rows), step)]
    packed, scales = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("packed", "scales"))
    return QuantisedMatrix(
        packed.reshape(*weights.shape[:-1], columns * bits // 8),
        scales.reshape(*weights.shape[:-1], columns // block),
        sum(piece.squared_error for piece in pieces),
        sum(piece.squared_norm for piece in pieces),
        max(piece.max_error for piece in pieces),
    )


def _quantise(weights: NDArray[np.floating[Any]], bits: int, block: int) -> QuantisedMatrix:
    """Quantises [N, K] in one piece."""
    grouped = np.asarray(weights, np.float32).reshape(len(weights), -1, block)
    scales = _search_scales(grouped, bits) if bits == 4 else _peak(grouped) / np.float32(127)
    codes, error = _encode(grouped, scales, bits)
    half = 1 << (bits - 1)
    unsigned = (codes + half).astype(np.uint8).reshape(weights.shape)
    packed = unsigned if bits == 8 else unsigned[..., 0::2] | (unsigned[..., 1::2] << 4)
    return QuantisedMatrix(
        packed.astype(np.uint8, copy=False),
        scales,
        float(np.square(error, dtype=np.float64).sum()),
        float(np.square(grouped, dtype=np.float64).sum()),
        float(np.abs(error).max(initial=0.0)),
    )


def dequantise(packed: NDArray[np.uint8], scales: Float32, *, bits: int, block: int) -> Float32:
    """Decodes to the values that the kernels compute with: (code - zero point) · scale.

    Args:
        packed: uint8 [..., K·bits/8].
        scales: float32 [..., K/block].
        bits: 4 or 8.
        block: number of weights that share a scale.

    Returns:
        float32 [..., K].
    """
    codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    centred = codes.astype(np.float32) - (1 << (bits - 1))
    grouped = centred.reshape(*codes.shape[:-1], -1, block) * scales[..., None]
    return grouped.reshape(codes.shape)


def _peak(grouped: Float32) -> Float32:
    peak: Float32 = np.abs(grouped).max(axis=-1)
    return peak


def _search_scales(grouped: Float32, bits: int) -> Float32:
    """The best candidate scale of each block. The largest magnitude maps to -8, the larger end of the signed range."""
    index = np.abs(grouped).argmax(axis=-1, keepdims=True)
    signed_peak = np.take_along_axis(grouped, index, axis=-1)[..., 0]
    best_scale = best_error = None
    for shrink in _SHRINK:
        scales = signed_peak * np.float32(shrink / -(1 << (bits - 1)))
        error = np.square(_encode(grouped, scales, bits)[1]).sum(axis=-1)
        if best_scale is None or best_error is None:
            best_scale, best_error = scales, error
        else:
            better = error < best_error
            best_scale, best_error = np.where(better, scales, best_scale), np.where(better, error, best_error)
    assert best_scale is not None
    return best_scale


def _encode(grouped: Float32, scales: Float32, bits: int) -> tuple[Float32, Float32]:
    half = 1 << (bits - 1)
    divisor = np.where(scales == 0, np.float32(1), scales)[..., None]
    codes = np.clip(np.rint(grouped / divisor), -half, half - 1)
    return codes, codes * scales[..., None] - grouped
