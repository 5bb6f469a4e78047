"""Rows of a weight brought to a common size by powers of two, so that float16 holds them and their products.

Published gpt-oss checkpoints have rows far apart in size: the few that write the residual stream's massive channels are
large, whole projections beside them are so small that their block scales would be float16 denormals. Row n is stored
times 2^-e[n], and the product's row n is multiplied by 2^e[n] in float32. Powers of two are exact: no weight changes
its value. Knows matrices; knows nothing of graphs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.quantise import QuantisedMatrix

Exponents = NDArray[np.int32]
_SMALLEST, _LARGEST = -126, 127  # exponents whose power of two is a normal float32
_ROWS = 1024  # at a time: an embedding has 201,088


def compute_length_exponents(weights: NDArray[Any]) -> Exponents:
    """Exponents that bring every row to an Euclidean length in (0.5, 1].

    A product's row is then no larger than the length of what it is multiplied with.

    Args:
        weights: float [N, K].

    Returns:
        int32 [N]; 0 for rows of zeros.
    """
    pieces = (weights[at : at + _ROWS].astype(np.float64) for at in range(0, len(weights), _ROWS))
    return compute_exponents(np.concatenate([np.linalg.norm(piece, axis=-1) for piece in pieces]))


def compute_exponents(sizes: NDArray[np.float64]) -> Exponents:
    """The smallest exponents e with size <= 2^e, int32; 0 where a size is 0 or not finite.

    Args:
        sizes: what is to be at most 1 once it is divided by 2^e, float64 [N].
    """
    usable = np.isfinite(sizes) & (sizes > 0)
    mantissas, exponents = np.frexp(np.where(usable, sizes, 1.0))
    exponents = np.where(mantissas == 0.5, exponents - 1, exponents)  # a power of two is at most itself
    return np.clip(np.where(usable, exponents, 0), _SMALLEST, _LARGEST).astype(np.int32)


def compute_factors(exponents: Exponents) -> NDArray[np.float32]:
    """What a product's rows are multiplied by, float32."""
    return np.ldexp(np.float32(1), exponents)


def scale_rows(weights: NDArray[Any], exponents: Exponents) -> NDArray[np.float32]:
    """Rows times 2^-e, float32 [N, K]."""
    return np.ldexp(np.asarray(weights, np.float32), -exponents[:, None])


def scale_quantised(matrix: QuantisedMatrix, exponents: Exponents) -> QuantisedMatrix:
    """The same codes with scales times 2^-e; its errors stay those of the weights themselves.

    Args:
        matrix: of N rows, scales float32 [N, K/block].
        exponents: int32 [N].
    """
    return replace(matrix, scales=np.ldexp(matrix.scales, -exponents[:, None]))
