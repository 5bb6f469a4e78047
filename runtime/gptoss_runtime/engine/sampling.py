"""Choosing the next token from its logits, in NumPy.

Done here and not in onnxruntime-genai for three reasons: one live generator can serve requests with different options
(genai fixes them when it is built), a seed means the same on every execution provider, and sampling from the whole
vocabulary of 201,088 takes 0.2 ms where genai sorts for 37. Knows logits and options; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.engine.results import TokenLogprobs
from gptoss_runtime.errors import NumericalError

_BLOCK = 512  # of the two-level inverse CDF: sums of blocks first, then inside one block
_TOP_BLOCK = 64  # of the search for the likeliest
_FEW = 8  # fewer than one token in so many allowed: only those are looked at
_NUCLEUS = 1024  # candidates sorted first for top_p; 16 times as many as long as these do not reach it

_LARGEST = np.finfo(np.float32).max
_LOWEST = -9999.0  # given for a log-probability that is minus infinity, as OpenAI does: JSON has no infinities

Logits = NDArray[np.float32]
Allowed = NDArray[np.bool_]


class Sampler:
    """Chooses tokens for one generation; keeps the random state and the counts the penalties need.

    Args:
        options: already validated.
        prompt: ids of the prompt, for ``repetition_penalty``.
    """

    def __init__(self, options: GenerationOptions, prompt: Sequence[int]) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._seen = set(prompt) if options.repetition_penalty != 1.0 else None
        self._counts: dict[int, int] = {}
        biases = dict(options.logit_bias)
        self._biased = np.fromiter(biases, np.int64)
        self._bias = np.fromiter(biases.values(), np.float32)

    def choose(self, logits: Logits, allowed: Allowed | None = None) -> int:
        """The next token.

        Args:
            logits: float32 ``[vocab]``, left unchanged.
            allowed: bool ``[vocab]``, the tokens to choose from, at least one; ``None``: all.

        Raises:
            NumericalError: a logit is NaN or infinite, also where no option would have chosen it.
        """
        check_finite(logits)
        adjusted = self._penalised(logits)
        tokens: NDArray[np.intp] | None = None
        if allowed is not None and np.count_nonzero(allowed) * _FEW < allowed.size:
            tokens = np.flatnonzero(allowed)
            adjusted = adjusted[tokens]
        elif allowed is not None:
            adjusted = adjusted.copy() if adjusted is logits else adjusted
            np.copyto(adjusted, np.float32(-np.inf), where=~allowed)
        index = int(adjusted.argmax()) if self._options.greedy else self._draw(adjusted)
        token = index if tokens is None else int(tokens[index])
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _penalised(self, logits: Logits) -> Logits:
        options = self._options
        additive = bool(options.frequency_penalty or options.presence_penalty) and bool(self._counts)
        if self._seen is None and not additive and not self._biased.size:
            return logits
        logits = logits.copy()
        logits[self._biased] += self._bias
        if self._seen is not None:
            seen = np.fromiter(self._seen, np.int64)
            values = logits[seen]
            penalty = np.float32(options.repetition_penalty)
            with np.errstate(over="ignore"):  # finite logits stay finite
                values = np.where(values > 0, values / penalty, values * penalty)
            logits[seen] = np.clip(values, -_LARGEST, _LARGEST)
        if additive:
            tokens = np.fromiter(self._counts, np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            logits[tokens] -= options.frequency_penalty * counts + options.presence_penalty
        return logits

    def _draw(self, logits: Logits) -> int:
        """Temperature, then top_k, top_p and min_p in the order the field applies them, then one draw."""
        options = self._options
        tokens: NDArray[np.intp] | None = None  # None: the whole vocabulary, in order
        if 0 < options.top_k < logits.size:  # which are the likeliest is the same at every temperature
            tokens = np.argpartition(logits, -options.top_k)[-options.top_k :]
            logits = logits[tokens]
        with np.errstate(over="ignore"):  # the highest is 0 and cannot overflow; the others may, to a weight of 0
            weights = logits - logits.max()
            if options.temperature != 1.0:
                weights /= np.float32(max(options.temperature, 1e-3))
        np.exp(weights, out=weights)
        if options.top_p < 1.0:
            kept = _nucleus(weights, options.top_p)
            weights, tokens = weights[kept], kept if tokens is None else tokens[kept]
        if options.min_p > 0.0:
            kept = np.flatnonzero(weights >= np.float32(options.min_p) * weights.max())
            weights, tokens = weights[kept], kept if tokens is None else tokens[kept]
        index = _inverse_cdf(weights, self._random.random())
        return index if tokens is None else int(tokens[index])


def check_finite(logits: Logits) -> None:
    """Refuses logits of which any is NaN or infinite: no choice among them means anything. Takes 13 us for 201,088.

    Args:
        logits: float32 ``[vocab]``, as the model gave them.

    Raises:
        NumericalError: says how many are what.
    """
    if np.isfinite(logits).all():
        return
    kinds = {"NaN": np.isnan(logits), "+inf": np.isposinf(logits), "-inf": np.isneginf(logits)}
    counts = [f"{np.count_nonzero(found):,} {kind}" for kind, found in kinds.items() if found.any()]
    raise NumericalError(f"logits are not finite ({', '.join(counts)} of {logits.size:,})")


def _nucleus(weights: Logits, top_p: float) -> NDArray[np.intp]:
    """Indices of the smallest set of weights that reaches ``top_p`` of their sum, likeliest first."""
    goal = top_p * float(weights.sum(dtype=np.float64))
    candidates: NDArray[np.intp] = np.arange(weights.size)
    head = _NUCLEUS
    while head < weights.size:
        likeliest = np.argpartition(weights, -head)[-head:]
        if float(weights[likeliest].sum(dtype=np.float64)) >= goal:
            candidates = likeliest
            break
        head *= 16
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    reached = np.cumsum(weights[order], dtype=np.float64)
    return order[: int(np.searchsorted(reached, goal)) + 1]


def _inverse_cdf(weights: Logits, uniform: float) -> int:
    """The index at which the cumulative sum of ``weights`` passes ``uniform`` (in [0, 1)) of its total."""
    sums = np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK))
    ends = np.cumsum(sums, dtype=np.float64)
    goal = uniform * float(ends[-1])
    block = min(int(np.searchsorted(ends, goal, side="right")), sums.size - 1)
    start = block * _BLOCK
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    before = float(ends[block - 1]) if block else 0.0
    index = start + min(int(np.searchsorted(inside, goal - before, side="right")), inside.size - 1)
    return index if weights[index] > 0 else int(weights.argmax())  # rounding at a block's end


def token_logprobs(logits: Logits, token: int, alternatives: int) -> TokenLogprobs:
    """What the model's own distribution says of a token and of the likeliest ones.

    Args:
        logits: float32 ``[vocab]``, finite, as the model gave them.
        token: the one that was chosen.
        alternatives: how many of the likeliest to report, 0 to 20.
    """
    highest = logits.max()
    likeliest = _likeliest(logits, min(alternatives, logits.size))
    with np.errstate(over="ignore"):  # between finite logits, too, may lie more than float32 holds
        total = float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
        top = tuple((int(index), _floored(logits[index] - total)) for index in likeliest)
        return TokenLogprobs(token, _floored(logits[token] - total), top)


def _likeliest(logits: Logits, count: int) -> NDArray[np.intp]:
    """Indices of the highest logits, highest first.

    The ``count`` blocks with the highest maxima hold them, so few values are sorted.
    """
    if count == 0:
        return np.empty(0, np.intp)
    starts = np.arange(0, logits.size, _TOP_BLOCK)
    maxima = np.maximum.reduceat(logits, starts)
    if count < maxima.size:
        starts = np.sort(starts[np.argpartition(maxima, -count)[-count:]])
    candidates = (starts[:, None] + np.arange(_TOP_BLOCK)).ravel()
    candidates = candidates[candidates < logits.size]
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]


def _floored(logprob: np.floating) -> float:
    return max(float(logprob), _LOWEST)
