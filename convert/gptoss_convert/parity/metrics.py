"""Compares two sets of logits: KL divergence, top-1 agreement and the largest difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS = 64  # positions at a time: one position's logits as float64 take 1.6 MB
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, eq=False)
class Distributions:
    """A reference's next-token distributions: complete, or the top k tokens and one bucket for all others.

    Attributes:
        logits: float32 [positions, vocab], or [positions, k] in descending order.
        ids: int32 [positions, k], the token ids of ``logits``; None if complete.
        rest: float64 [positions], log-sum-exp of all other logits, -inf if there are none; None if complete.
    """

    logits: NDArray[np.float32]
    ids: NDArray[np.int32] | None = None
    rest: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def top_k(self, count: int) -> Distributions:
        """The ``count`` most likely tokens of each distribution; these have to be complete."""
        return Distributions.concatenate(
            [_top_k(self.logits[at : at + _ROWS], count) for at in range(0, len(self), _ROWS)]
        )

    @classmethod
    def concatenate(cls, parts: list[Distributions]) -> Distributions:
        """Concatenates distributions with the same number of tokens."""
        logits = np.concatenate([part.logits for part in parts])
        ids = [part.ids for part in parts if part.ids is not None]
        rest = [part.rest for part in parts if part.rest is not None]
        return cls(logits, np.concatenate(ids), np.concatenate(rest)) if ids and rest else cls(logits)

    def top_tokens(self) -> NDArray[np.int64]:
        """The most likely token at each position, int64 [positions]."""
        best: NDArray[np.int64] = self.logits.argmax(axis=-1)
        return best if self.ids is None else self.ids[np.arange(len(self)), best].astype(np.int64)

    def take(self, some: slice | list[int]) -> Distributions:
        """The distributions at some of the positions."""
        if self.ids is None or self.rest is None:
            return Distributions(self.logits[some])
        return Distributions(self.logits[some], self.ids[some], self.rest[some])


@dataclass(frozen=True, eq=False)
class Comparison:
    """Differences between two sets of logits, [positions] each.

    Attributes:
        max_abs: the largest absolute difference of a logit.
        kl: KL(reference ‖ other) of the next-token distributions, in nats.
        same_top: whether both have the same most likely token.
    """

    max_abs: NDArray[np.float64]
    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]

    @classmethod
    def concatenate(cls, parts: list[Comparison]) -> Comparison:
        """Concatenates comparisons."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("max_abs", "kl", "same_top")))

    def figures(self) -> dict[str, float]:
        """Number of positions, largest difference, mean and quantiles of the divergence, and top-1 agreement."""
        quantiles = {f"{name}_kl": float(np.quantile(self.kl, at)) for name, at in QUANTILES.items()}
        return {
            "tokens": len(self.kl),
            "max_abs": float(self.max_abs.max()),
            "mean_kl": float(self.kl.mean()),
            **quantiles,
            "max_kl": float(self.kl.max()),
            "top1": float(self.same_top.mean()),
        }


def compare(reference: NDArray[np.float32] | Distributions, other: NDArray[np.float32]) -> Comparison:
    """Compares logits position by position.

    Args:
        reference: float32 [positions, vocab], or its top k tokens. With top k, all other tokens count as one, which
            makes the divergence a lower bound, and ``max_abs`` is that of the top k.
        other: float32 [positions, vocab].

    Raises:
        ValueError: the shapes differ, or there are no positions.
    """
    if not isinstance(reference, Distributions):
        reference = Distributions(reference)
    if len(reference) != len(other) or (reference.ids is None and reference.logits.shape != other.shape):
        raise ValueError(f"logits of shape {reference.logits.shape} and {other.shape}")
    starts = range(0, len(reference), _ROWS)
    return Comparison.concatenate(
        [_compare(reference.take(slice(at, at + _ROWS)), other[at : at + _ROWS]) for at in starts]
    )


def _compare(reference: Distributions, other: NDArray[np.float32]) -> Comparison:
    logits, mine, rest = reference.logits.astype(np.float64), other.astype(np.float64), reference.rest
    same_top = reference.top_tokens() == other.argmax(axis=-1)
    if reference.ids is not None and rest is not None:  # the top k, then the bucket of all others
        kept = np.take_along_axis(mine, reference.ids, axis=-1)
        np.put_along_axis(mine, reference.ids, -np.inf, axis=-1)
        logits, mine = (np.c_[part, bucket] for part, bucket in ((logits, rest), (kept, _log_sum_exp(mine))))
    likely = np.isfinite(logits)  # an empty bucket is empty in both
    difference = np.where(likely, np.subtract(logits, mine, where=likely, out=np.zeros_like(logits)), 0)
    differences = np.abs(difference[:, : reference.logits.shape[1]])
    log_ratio = difference - (_log_sum_exp(logits) - _log_sum_exp(mine))[:, None]
    kl = (_softmax(logits) * np.where(likely, log_ratio, 0)).sum(axis=-1)
    # rounding can make a divergence of zero negative
    return Comparison(differences.max(axis=-1), np.maximum(kl, 0), same_top)


def _top_k(logits: NDArray[np.float32], count: int) -> Distributions:
    count = min(count, logits.shape[-1])
    least = np.partition(logits, -count, axis=-1)[:, -count]
    likeliest = np.empty((len(logits), count), np.int64)
    for row, bound, ids in zip(logits, least, likeliest, strict=True):
        above = np.flatnonzero(row > bound)
        ids[:] = np.sort(np.r_[above, np.flatnonzero(row == bound)[: count - len(above)]])  # among equals the lower ids
    order = np.argsort(-np.take_along_axis(logits, likeliest, axis=-1), axis=-1, kind="stable")
    kept = np.take_along_axis(likeliest, order, axis=-1).astype(np.int32)
    rest = logits.astype(np.float64)
    np.put_along_axis(rest, kept, -np.inf, axis=-1)
    return Distributions(np.take_along_axis(logits, kept, axis=-1), kept, _log_sum_exp(rest))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.exp(logits - _log_sum_exp(logits)[:, None])
    return result


def _log_sum_exp(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-sum-exp of every row; -inf if all of the row is."""
    largest = logits.max(axis=-1)
    shift = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):
        result: NDArray[np.float64] = np.log(np.exp(logits - shift[:, None]).sum(axis=-1)) + shift
    return result
