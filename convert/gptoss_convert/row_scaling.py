"""Scales the rows of a weight by powers of two, so that float16 holds them and their products.

Rows of published gpt-oss checkpoints differ widely in size. The few that write the residual stream's massive channels
are large; whole projections beside them are so small that their block scales would be float16 denormals. Row n is
stored times 2^-e[n], and row n of the product is multiplied by 2^e[n] in float32. Powers of two are exact: no weight
changes its value. Knows matrices; knows nothing of graphs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.quantise import QuantisedMatrix

Exponents = NDArray[np.int32]
_SMALLEST, _LARGEST = -126, 127  # exponents whose power of two is a normal float32
_ROWS = 1024  # rows at a time: an embedding has 201,088


def compute_length_exponents(weights: NDArray[Any]) -> Exponents:
    """Computes the exponents that scale every row to a Euclidean length in (0.5, 1].

    A row's product is then no larger than the length of the vector it is multiplied with.

    Args:
        weights: float [N, K].

    Returns:
        int32 [N]; 0 for rows of zeros.
    """
    pieces = (weights[at : at + _ROWS].astype(np.float64) for at in range(0, len(weights), _ROWS))
    return compute_exponents(np.concatenate([np.linalg.norm(piece, axis=-1) for piece in pieces]))


def compute_exponents(sizes: NDArray[np.float64]) -> Exponents:
    """Computes the smallest exponents e with size <= 2^e.

    Args:
        sizes: float64 [N]; at most 1 after division by 2^e.

    Returns:
        int32 [N]; 0 where a size is 0 or not finite.
    """
    usable = np.isfinite(sizes) & (sizes > 0)
    mantissas, exponents = np.frexp(np.where(usable, sizes, 1.0))
    exponents = np.where(mantissas == 0.5, exponents - 1, exponents)  # 2^k <= 2^k: frexp's exponent is one too large
    return np.clip(np.where(usable, exponents, 0), _SMALLEST, _LARGEST).astype(np.int32)


def compute_factors(exponents: Exponents) -> NDArray[np.float32]:
    """Factors 2^e by which the product's rows are multiplied, float32 [N]."""
    return np.ldexp(np.float32(1), exponents)


def scale_rows(weights: NDArray[Any], exponents: Exponents) -> NDArray[np.float32]:
    """Multiplies rows by 2^-e; float32 [N, K]."""
    return np.ldexp(np.asarray(weights, np.float32), -exponents[:, None])


def scale_quantised(matrix: QuantisedMatrix, exponents: Exponents) -> QuantisedMatrix:
    """Multiplies the scales by 2^-e; codes stay, and errors stay those of the unscaled weights.

    Args:
        matrix: of N rows, scales float32 [N, K/block].
        exponents: int32 [N].
    """
    return replace(matrix, scales=np.ldexp(matrix.scales, -exponents[:, None]))
