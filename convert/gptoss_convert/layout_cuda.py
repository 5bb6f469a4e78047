"""Puts expert weights in the layouts of onnxruntime's CUDA kernels: the same codes, in another order.

Knows packed codes of one matrix [N, K]; knows nothing of scales, whose layout CUDA does not change, of files or graphs.
Sources: onnxruntime's docs/contrib_ops/cuda/moe_qmoe.md, §6, and fpA_intB_gemm_preprocessors_impl.h.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]
TILE = 64  # consecutive weights of a row in the integer layout; K is a multiple of it
_PAIRS = 256  # pairs of rows transposed at a time: input and output both stay in a core's cache


def transpose_nibbles(codes: Codes) -> Codes:
    """Transposes MXFP4 codes for ``quant_type="fp4"``: column by column, the even row of a pair in the low nibble.

    Args:
        codes: uint8 [N, K/2], two columns a byte; N is even.

    Returns:
        uint8 [K, N/2], two rows a byte.
    """
    rows, pairs = codes.shape
    laid = np.empty((pairs, 2, rows // 2), np.uint8)
    for at in range(0, rows // 2, _PAIRS):
        some = codes[2 * at : 2 * (at + _PAIRS)]
        even, odd = _regroup_nibbles(some[0::2], some[1::2])
        laid[:, 0, at : at + _PAIRS], laid[:, 1, at : at + _PAIRS] = even.T, odd.T
    return laid.reshape(2 * pairs, rows // 2)


def interleave(codes: Codes, bits: int) -> Codes:
    """Interleaves integer codes for CUTLASS's mixed GEMM, in the layout for compute capability 8.0, used on every GPU.

    Within a row, weights have the order of the tensor cores' registers: of 32 weights of 4 bits, word ``w`` holds 2w,
    2w+8, 2w+16, 2w+24 and the four after them; of 16 weights of 8 bits, 2w, 2w+8 and the two after them. Then
    ``16 / bits`` rows alternate, a tile of 64 weights each. Codes stay unsigned: the kernel subtracts the zero point.

    Args:
        codes: uint8 [N, K·bits/8]; N is a multiple of ``16 / bits`` and K of 64.
        bits: 4 or 8.

    Returns:
        uint8 [K, N·bits/8]; the kernel recognises the layout by this shape.
    """
    rows, turns = len(codes), 16 // bits
    if bits == 8:
        words = codes.reshape(rows, -1, 2, 4, 2).transpose(0, 1, 3, 4, 2)  # half, word, odd → word, odd, half
    else:
        quarters = codes.reshape(rows, -1, 2, 2, 4)  # half, quarter of it, word
        words = np.stack(_regroup_nibbles(quarters[..., 0, :], quarters[..., 1, :])).transpose(1, 2, 4, 0, 3)
    tiles = words.reshape(rows // turns, turns, -1, TILE * bits // 8).swapaxes(1, 2)
    return tiles.reshape(-1, rows * bits // 8)


def _regroup_nibbles(first: Codes, second: Codes) -> tuple[Codes, Codes]:
    """Bytes of the two low nibbles, and bytes of the two high nibbles, of corresponding bytes."""
    low, high = (first & 15) | (second << 4), (first >> 4) | (second & 0xF0)
    return low.astype(np.uint8, copy=False), high.astype(np.uint8, copy=False)
