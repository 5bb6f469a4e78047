"""How far two sets of logits are apart. Knows arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS = 64  # positions at a time: a row of 201,088 float64 has 1.6 MB


@dataclass(frozen=True, eq=False)
class Comparison:
    """Position by position, [tokens] each.

    Attributes:
        max_abs: largest absolute difference of a logit.
        kl: Kullback-Leibler divergence of the other's next-token distribution from the reference's, nats.
        same_top: whether both have the same most likely token.
    """

    max_abs: NDArray[np.float64]
    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: list[Comparison]) -> Comparison:
        """Several comparisons end to end."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("max_abs", "kl", "same_top")))


def compare(reference: NDArray[np.float32], other: NDArray[np.float32]) -> Comparison:
    """Compares logits, [tokens, vocab] both.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"logits of shape {reference.shape} and {other.shape}")
    return Comparison.joined(
        [_compare(reference[at : at + _ROWS], other[at : at + _ROWS]) for at in range(0, len(reference), _ROWS)]
    )


def _compare(reference: NDArray[np.float32], other: NDArray[np.float32]) -> Comparison:
    log_p, log_q = _log_softmax(reference), _log_softmax(other)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return Comparison(
        np.abs(reference.astype(np.float64) - other).max(axis=-1),
        np.maximum(kl, 0),  # rounding can take a divergence of nothing below it
        reference.argmax(axis=-1) == other.argmax(axis=-1),
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
