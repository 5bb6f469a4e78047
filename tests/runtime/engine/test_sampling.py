from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_runtime import GenerationOptions
from gptoss_runtime.engine.sampling import Sampler

VOCAB = 2000


def reference(logits: np.ndarray, options: GenerationOptions) -> np.ndarray:
    """Probabilities by a simple, slow implementation: one sort, one mask per filter."""
    scaled = logits.astype(np.float64) / options.temperature
    order = np.argsort(-scaled, kind="stable")
    kept = np.zeros(len(scaled), bool)
    kept[order[: options.top_k or len(order)]] = True
    weights = np.where(kept, np.exp(scaled - scaled.max()), 0)
    reached = np.cumsum(weights[order]) / weights.sum()
    before = np.concatenate([[0.0], reached[:-1]])
    weights[order[before >= options.top_p]] = 0
    weights[weights < options.min_p * weights.max()] = 0
    return weights / weights.sum()


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 7},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.05},
    ],
)
def test_frequencies_match_the_reference(settings_: dict[str, float]) -> None:
    logits = np.random.default_rng(1).normal(0, 3, VOCAB).astype(np.float32)
    options = GenerationOptions(seed=2, **settings_)  # type: ignore[arg-type]
    sampler = Sampler(options, [])
    sampled = np.bincount([sampler.sample(logits) for _ in range(5000)], minlength=VOCAB) / 5000
    expected = reference(logits, options)
    assert not sampled[expected == 0].any()
    assert abs(sampled - expected).max() < 0.03


@settings(max_examples=50)
@given(
    st.integers(1, 3000), st.integers(0, 5), st.floats(0.01, 1), st.integers(0, 40), st.floats(0, 1), st.floats(0.01, 2)
)
def test_only_tokens_that_pass_the_filters_are_sampled(
    vocab: int, seed: int, top_p: float, top_k: int, min_p: float, temperature: float
) -> None:
    logits = np.random.default_rng(seed).normal(0, 5, vocab).astype(np.float32)
    options = GenerationOptions(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)
    token = Sampler(options, []).sample(logits)
    assert 0 <= token < vocab
    assert logits[token] >= np.sort(logits)[-min(top_k or vocab, vocab)]


def test_greedy_takes_the_most_likely_token_and_leaves_the_logits_unchanged() -> None:
    logits = np.array([1, 5, 3], np.float32)
    before = logits.copy()
    for options in (GenerationOptions(temperature=0), GenerationOptions(top_k=1), GenerationOptions(temperature=1e-30)):
        assert Sampler(options, [1]).sample(logits) == 1
    Sampler(GenerationOptions(repetition_penalty=2.0), [1]).sample(logits)
    assert (logits == before).all()


def test_penalties() -> None:
    logits = np.array([1, 5, 3], np.float32)
    assert Sampler(GenerationOptions(temperature=0, repetition_penalty=2.0), [1]).sample(logits) == 2
    presence = Sampler(GenerationOptions(temperature=0, presence_penalty=2.0), [1])
    assert [presence.sample(logits) for _ in range(2)] == [1, 1]
    frequency = Sampler(GenerationOptions(temperature=0, frequency_penalty=1.5), [1])
    assert [frequency.sample(logits) for _ in range(3)] == [1, 1, 2]


def test_a_seed_is_reproducible_and_no_seed_is_random() -> None:
    logits = np.zeros(VOCAB, np.float32)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(GenerationOptions(seed=seed), [])
        return [sampler.sample(logits) for _ in range(8)]

    assert draw(5) == draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_masked_tokens_are_never_sampled() -> None:
    logits = np.zeros(VOCAB, np.float32)
    for kept in ([3, 1500], [*range(0, VOCAB, 2)]):  # few allowed tokens are gathered, many are masked
        allowed = np.zeros(VOCAB, np.bool_)
        allowed[kept] = True
        sampler = Sampler(GenerationOptions(seed=0), [])
        sampled = {sampler.sample(logits, allowed) for _ in range(50)}
        assert sampled <= set(kept)
        assert len(sampled) > 1
