"""The position of each weight in the layouts of CUDA's kernels, as onnxruntime's source describes them.

Written from docs/contrib_ops/cuda/moe_qmoe.md, §6, step by step, and not from what it judges,
gptoss_convert.layout_cuda.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]
# kPerm_W4_A16 and kPerm_W8_A16: which of 32 or 16 weights ldmatrix expects at each position
PERMUTATION = {
    4: [
        *(0, 1, 8, 9, 16, 17, 24, 25, 2, 3, 10, 11, 18, 19, 26, 27),
        *(4, 5, 12, 13, 20, 21, 28, 29, 6, 7, 14, 15, 22, 23, 30, 31),
    ],
    8: [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15],
}
IN_A_WORD = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}  # which weight of a 32-bit word is at each position


def locate_mxfp4(n: Index, k: Index, rows: int, columns: int) -> Index:
    """MXFP4: the index of the nibble that holds weight [n, k] of a matrix [rows, columns]."""
    return k * rows + n


def locate_integer(n: Index, k: Index, rows: int, columns: int, bits: int) -> Index:
    """int4 or int8: the index of the nibble or byte that holds weight [n, k]."""
    permutation, word = PERMUTATION[bits], IN_A_WORD[bits]
    k = k // len(permutation) * len(permutation) + np.argsort(permutation)[k % len(permutation)]
    k = k // len(word) * len(word) + np.argsort(word)[k % len(word)]
    turns = 16 // bits
    return (n // turns * (columns // 64) + k // 64) * 64 * turns + n % turns * 64 + k % 64


def weights(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Unpacks codes to one per element, [..., count]; the low nibble comes first."""
    return codes if bits == 8 else np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)


def to_cpu_layout(laid: NDArray[np.uint8], rows: int, kind: str) -> NDArray[np.uint8]:
    """Converts the codes of one matrix from CUDA's layout, [K, N·bits/8], to the CPU's, [N, K·bits/8].

    Args:
        laid: the codes.
        rows: N.
        kind: "mxfp4", "int4" or "int8".
    """
    bits, columns = (8 if kind == "int8" else 4), len(laid)
    n, k = np.indices((rows, columns))
    where = locate_mxfp4(n, k, rows, columns) if kind == "mxfp4" else locate_integer(n, k, rows, columns, bits)
    found = weights(laid.reshape(-1), bits)[where]
    return found if bits == 8 else (found[:, 0::2] | found[:, 1::2] << 4).astype(np.uint8)
