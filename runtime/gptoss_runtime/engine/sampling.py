"""Samples the next token from its logits, in NumPy.

This is done here and not in onnxruntime-genai for three reasons: one live generator can serve requests with different
options (genai fixes them at construction); a seed gives the same draws on every execution provider; and sampling from
the whole vocabulary of 201,088 takes 0.2 ms, where genai sorts it in 37 ms. Knows logits and options, not models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.engine.results import TokenLogprobs
from gptoss_runtime.errors import NumericalError

_CDF_BLOCK = 512  # values per block of the two-level inverse CDF: block sums first, then inside one block
_TOP_K_BLOCK = 64  # values per block of the top-k search
_SPARSE_MASK_RATIO = 8  # if a mask allows fewer than one token in 8, only the allowed logits are gathered
_TOP_P_CANDIDATES = 1024  # tokens sorted first for top_p; multiplied by 16 until they reach it

_MAX_FLOAT32 = np.finfo(np.float32).max
_MIN_LOGPROB = -9999.0  # replaces minus infinity, which JSON lacks; OpenAI's API does the same

Logits = NDArray[np.float32]
TokenMask = NDArray[np.bool_]


class Sampler:
    """Samples the tokens of one generation; holds its random state and the token counts that penalties need.

    Args:
        options: validated options.
        prompt: the prompt's ids, for ``repetition_penalty``.
    """

    def __init__(self, options: GenerationOptions, prompt: Sequence[int]) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)
        self._seen = set(prompt) if options.repetition_penalty != 1.0 else None  # ids in the prompt and the answer
        self._counts: dict[int, int] = {}
        biases = dict(options.logit_bias)
        self._biased_tokens = np.fromiter(biases, np.int64)
        self._biases = np.fromiter(biases.values(), np.float32)

    def sample(self, logits: Logits, mask: TokenMask | None = None) -> int:
        """Chooses the next token.

        Args:
            logits: float32 ``[vocab]``, left unchanged.
            mask: bool ``[vocab]``, true for the tokens to choose from, at least one; ``None`` allows all.

        Raises:
            NumericalError: a logit is NaN or infinite, even one that the options exclude.
        """
        check_finite(logits)
        adjusted = self._apply_penalties(logits)
        tokens: NDArray[np.intp] | None = None
        if mask is not None and np.count_nonzero(mask) * _SPARSE_MASK_RATIO < mask.size:
            tokens = np.flatnonzero(mask)
            adjusted = adjusted[tokens]
        elif mask is not None:
            adjusted = adjusted.copy() if adjusted is logits else adjusted
            np.copyto(adjusted, np.float32(-np.inf), where=~mask)
        index = int(adjusted.argmax()) if self._options.greedy else self._draw(adjusted)
        token = index if tokens is None else int(tokens[index])
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _apply_penalties(self, logits: Logits) -> Logits:
        """The logits with bias and penalties; the same array if there are none."""
        options = self._options
        additive = bool(options.frequency_penalty or options.presence_penalty) and bool(self._counts)
        if self._seen is None and not additive and not self._biased_tokens.size:
            return logits
        logits = logits.copy()
        logits[self._biased_tokens] += self._biases
        if self._seen is not None:
            seen = np.fromiter(self._seen, np.int64)
            values = logits[seen]
            penalty = np.float32(options.repetition_penalty)
            with np.errstate(over="ignore"):  # clipped below
                values = np.where(values > 0, values / penalty, values * penalty)
            logits[seen] = np.clip(values, -_MAX_FLOAT32, _MAX_FLOAT32)
        if additive:
            tokens = np.fromiter(self._counts, np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            logits[tokens] -= options.frequency_penalty * counts + options.presence_penalty
        return logits

    def _draw(self, logits: Logits) -> int:
        """Applies top_k, temperature, top_p and min_p, in the order that is common elsewhere, and draws an index."""
        options = self._options
        tokens: NDArray[np.intp] | None = None  # None: the whole vocabulary, in order
        if 0 < options.top_k < logits.size:  # temperature does not change their order, so fewer are scaled
            tokens = np.argpartition(logits, -options.top_k)[-options.top_k :]
            logits = logits[tokens]
        with np.errstate(over="ignore"):  # the maximum becomes 0; others may overflow to -inf, a weight of 0
            weights = logits - logits.max()
            if options.temperature != 1.0:
                weights /= np.float32(max(options.temperature, 1e-3))
        np.exp(weights, out=weights)
        if options.top_p < 1.0:
            kept = _top_p_indices(weights, options.top_p)
            weights, tokens = weights[kept], kept if tokens is None else tokens[kept]
        if options.min_p > 0.0:
            kept = np.flatnonzero(weights >= np.float32(options.min_p) * weights.max())
            weights, tokens = weights[kept], kept if tokens is None else tokens[kept]
        index = _inverse_cdf(weights, self._random.random())
        return index if tokens is None else int(tokens[index])


def check_finite(logits: Logits) -> None:
    """Checks that all logits are finite; takes 13 µs for 201,088.

    Args:
        logits: float32 ``[vocab]``, as the model returned them.

    Raises:
        NumericalError: some are NaN or infinite; the message counts them.
    """
    if np.isfinite(logits).all():
        return
    kinds = {"NaN": np.isnan(logits), "+inf": np.isposinf(logits), "-inf": np.isneginf(logits)}
    counts = [f"{np.count_nonzero(found):,} {kind}" for kind, found in kinds.items() if found.any()]
    raise NumericalError(f"logits are not finite ({', '.join(counts)} of {logits.size:,})")


def _top_p_indices(weights: Logits, top_p: float) -> NDArray[np.intp]:
    """Indices of the smallest set of weights that reaches ``top_p`` of their sum, largest weight first."""
    goal = top_p * float(weights.sum(dtype=np.float64))
    candidates: NDArray[np.intp] = np.arange(weights.size)
    head = _TOP_P_CANDIDATES
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
    sums = np.add.reduceat(weights, np.arange(0, weights.size, _CDF_BLOCK))
    ends = np.cumsum(sums, dtype=np.float64)
    goal = uniform * float(ends[-1])
    block = min(int(np.searchsorted(ends, goal, side="right")), sums.size - 1)
    start = block * _CDF_BLOCK
    inside = np.cumsum(weights[start : start + _CDF_BLOCK], dtype=np.float64)
    before = float(ends[block - 1]) if block else 0.0
    index = start + min(int(np.searchsorted(inside, goal - before, side="right")), inside.size - 1)
    return index if weights[index] > 0 else int(weights.argmax())  # rounding at the end of a block


def compute_logprobs(logits: Logits, token: int, top_count: int) -> TokenLogprobs:
    """Log-probabilities of a token and of the most likely tokens, in the model's own distribution.

    Args:
        logits: float32 ``[vocab]``, finite, as the model returned them.
        token: the sampled token.
        top_count: how many of the most likely tokens to report, 0 to 20.
    """
    highest = logits.max()
    likeliest = _top_k_indices(logits, min(top_count, logits.size))
    with np.errstate(over="ignore"):  # the difference of two finite logits may exceed float32
        total = float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
        top = tuple((int(index), _clamp_logprob(logits[index] - total)) for index in likeliest)
        return TokenLogprobs(token, _clamp_logprob(logits[token] - total), top)


def _top_k_indices(logits: Logits, count: int) -> NDArray[np.intp]:
    """Indices of the highest logits, highest first.

    They all lie in the ``count`` blocks with the highest maxima, so only those blocks are sorted.
    """
    if count == 0:
        return np.empty(0, np.intp)
    starts = np.arange(0, logits.size, _TOP_K_BLOCK)
    maxima = np.maximum.reduceat(logits, starts)
    if count < maxima.size:
        starts = np.sort(starts[np.argpartition(maxima, -count)[-count:]])
    candidates = (starts[:, None] + np.arange(_TOP_K_BLOCK)).ravel()
    candidates = candidates[candidates < logits.size]
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]


def _clamp_logprob(logprob: np.floating) -> float:
    return max(float(logprob), _MIN_LOGPROB)
