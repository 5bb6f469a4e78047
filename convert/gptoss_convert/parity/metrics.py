"""How far two sets of logits are apart. Knows arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS = 64  # positions at a time: a row of 201,088 float64 has 1.6 MB
QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, eq=False)
class Distributions:
    """Next-token distributions of a reference: whole, or the likeliest tokens and one bucket for the rest.

    Attributes:
        logits: float32 [tokens, vocab], or [tokens, kept] in descending order.
        ids: int32 [tokens, kept], the tokens of ``logits``; None: all of the vocabulary.
        rest: float64 [tokens], log-sum-exp of the logits that were not kept, -inf where all were; None: as ``ids``.
    """

    logits: NDArray[np.float32]
    ids: NDArray[np.int32] | None = None
    rest: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def keep(self, count: int) -> Distributions:
        """The ``count`` likeliest tokens of each of these, which are whole."""
        return Distributions.joined([_keep(self.logits[at : at + _ROWS], count) for at in range(0, len(self), _ROWS)])

    @classmethod
    def joined(cls, parts: list[Distributions]) -> Distributions:
        """Several, of as many kept tokens each, end to end."""
        logits = np.concatenate([part.logits for part in parts])
        ids = [part.ids for part in parts if part.ids is not None]
        rest = [part.rest for part in parts if part.rest is not None]
        return cls(logits, np.concatenate(ids), np.concatenate(rest)) if ids and rest else cls(logits)

    def top(self) -> NDArray[np.int64]:
        """The likeliest token of each."""
        best: NDArray[np.int64] = self.logits.argmax(axis=-1)
        return best if self.ids is None else self.ids[np.arange(len(self)), best].astype(np.int64)

    def take(self, some: slice | list[int]) -> Distributions:
        """Of some of the tokens."""
        if self.ids is None or self.rest is None:
            return Distributions(self.logits[some])
        return Distributions(self.logits[some], self.ids[some], self.rest[some])


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

    def figures(self) -> dict[str, float]:
        """Of all positions: their number, the largest difference, the divergence's mean and quantiles, agreement."""
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
    """Compares logits.

    Args:
        reference: [tokens, vocab], or what was kept of them: then the divergence is that of the kept tokens and of all
            others taken together, a lower bound, and differences are those of kept tokens.
        other: [tokens, vocab].

    Raises:
        ValueError: the shapes differ, or there is nothing to compare.
    """
    if not isinstance(reference, Distributions):
        reference = Distributions(reference)
    if len(reference) != len(other) or (reference.ids is None and reference.logits.shape != other.shape):
        raise ValueError(f"logits of shape {reference.logits.shape} and {other.shape}")
    starts = range(0, len(reference), _ROWS)
    return Comparison.joined([_compare(reference.take(slice(at, at + _ROWS)), other[at : at + _ROWS]) for at in starts])


def _compare(reference: Distributions, other: NDArray[np.float32]) -> Comparison:
    logits, mine, rest = reference.logits.astype(np.float64), other.astype(np.float64), reference.rest
    same_top = reference.top() == other.argmax(axis=-1)
    if reference.ids is not None and rest is not None:  # kept tokens, then the bucket
        kept = np.take_along_axis(mine, reference.ids, axis=-1)
        np.put_along_axis(mine, reference.ids, -np.inf, axis=-1)
        logits, mine = (np.c_[part, bucket] for part, bucket in ((logits, rest), (kept, _log_sum_exp(mine))))
    likely = np.isfinite(logits)  # an empty bucket is empty in both
    difference = np.where(likely, np.subtract(logits, mine, where=likely, out=np.zeros_like(logits)), 0)
    apart = difference[:, : reference.logits.shape[1]]
    log_ratio = difference - (_log_sum_exp(logits) - _log_sum_exp(mine))[:, None]
    kl = (_softmax(logits) * np.where(likely, log_ratio, 0)).sum(axis=-1)
    # rounding can take a divergence of nothing below it
    return Comparison(np.abs(apart).max(axis=-1), np.maximum(kl, 0), same_top)


def _keep(logits: NDArray[np.float32], count: int) -> Distributions:
    count = min(count, logits.shape[-1])
    least = np.partition(logits, -count, axis=-1)[:, -count]
    likeliest = np.empty((len(logits), count), np.int64)
    for row, bound, ids in zip(logits, least, likeliest, strict=True):
        above = np.flatnonzero(row > bound)
        ids[:] = np.sort(np.r_[above, np.flatnonzero(row == bound)[: count - len(above)]])  # of equals the lower ids
    order = np.argsort(-np.take_along_axis(logits, likeliest, axis=-1), axis=-1, kind="stable")
    kept = np.take_along_axis(likeliest, order, axis=-1).astype(np.int32)
    rest = logits.astype(np.float64)
    np.put_along_axis(rest, kept, -np.inf, axis=-1)
    return Distributions(np.take_along_axis(logits, kept, axis=-1), kept, _log_sum_exp(rest))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.exp(logits - _log_sum_exp(logits)[:, None])
    return result


def _log_sum_exp(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of every row; -inf where all of it is."""
    largest = logits.max(axis=-1)
    shift = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):
        result: NDArray[np.float64] = np.log(np.exp(logits - shift[:, None]).sum(axis=-1)) + shift
    return result
