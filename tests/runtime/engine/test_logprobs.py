from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_runtime import Engine, GenerationOptions, InvalidRequest, Message
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.chat.turn_grammar import build_turn_grammar
from gptoss_runtime.engine.sampling import Logits, Sampler, compute_logprobs
from gptoss_runtime.engine.scripted import ScriptedEngine


def log_softmax(logits: Logits) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max()
    result: np.ndarray = wide - np.log(np.exp(wide).sum())
    return result


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 1.2, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "seed": 3},
        {"repetition_penalty": 1.3, "frequency_penalty": 1, "presence_penalty": 1, "seed": 4},
        {"logit_bias": {17196: 5.0}, "seed": 5},
        {"grammar": build_turn_grammar(tool_choice="none"), "temperature": 0},
    ],
    ids=" ".join,
)
def test_logprobs_are_those_of_the_models_own_distribution(
    engine: Engine, harmony: Harmony, options: dict[str, object]
) -> None:
    prompt = harmony.render([Message("user", "What is the capital of France?")])
    generation = engine.generate(prompt, GenerationOptions(max_new_tokens=12, logprobs=20, **options))  # type: ignore[arg-type]
    ids = list(generation)
    assert [entry.token for entry in generation.logprobs] == ids
    rows = engine.logits(prompt + ids[:-1])[len(prompt) - 1 :]
    for entry, row in zip(generation.logprobs, rows, strict=True):
        expected = log_softmax(row)
        # decoding and prefill round differently, more so on text that nano was not trained on
        assert math.isclose(entry.logprob, expected[entry.token], abs_tol=0.02)
        assert len(entry.top) == 20
        assert len({token for token, _ in entry.top}) == 20
        assert [value for _, value in entry.top] == sorted((value for _, value in entry.top), reverse=True)
        np.testing.assert_allclose(
            [value for _, value in entry.top], np.sort(expected)[::-1][:20], rtol=0.01, atol=0.02
        )


def test_logprobs_come_with_each_token_if_requested() -> None:
    engine = ScriptedEngine([[5, 6], [5, 6], [5, 6]])
    generation = engine.generate([1], GenerationOptions(logprobs=0))
    for count, token in enumerate(generation, start=1):
        assert len(generation.logprobs) == count
        assert generation.logprobs[-1].token == token
        assert generation.logprobs[-1].top == ()
    silent = engine.generate([1])
    assert list(silent)
    assert silent.logprobs == []


@given(hnp.arrays(np.float32, st.integers(1, 700), elements=st.floats(-50, 50, width=32)), st.integers(0, 20))
def test_top_logprobs_are_the_highest(logits: Logits, count: int) -> None:
    found = compute_logprobs(logits, int(logits.argmin()), count)
    expected = np.sort(log_softmax(logits))[::-1][:count]
    np.testing.assert_allclose([value for _, value in found.top], expected, atol=1e-4)
    assert all(math.isclose(value, log_softmax(logits)[token], abs_tol=1e-4) for token, value in found.top)


def test_an_impossible_token_has_a_finite_logprob() -> None:
    logits = np.array([0, np.finfo(np.float32).min, 0], np.float32)
    found = compute_logprobs(logits, 1, 3)
    assert found.logprob == -9999.0
    assert found.top[-1] == (1, -9999.0)


def test_logit_bias_forces_and_forbids_tokens() -> None:
    engine = ScriptedEngine([[7] * 50, [7] * 50, [7] * 50], vocab_size=100)
    forced = GenerationOptions(max_new_tokens=3, temperature=0, logit_bias={9: 100, 7: -100}, stop_token_ids=())
    assert list(engine.generate([1], forced)) == [7, 7, 7]  # the script's logit is 1,000, above any bias
    mild = Sampler(GenerationOptions(temperature=0, logit_bias={9: 3}), [1])
    logits = np.zeros(100, np.float32)
    logits[7] = 2
    assert mild.sample(logits) == 9
    assert logits[9] == 0
    masked = Sampler(GenerationOptions(logit_bias={9: 100}, seed=1), [1])
    allowed = np.zeros(100, np.bool_)
    allowed[[3, 4]] = True
    assert {masked.sample(logits, allowed) for _ in range(50)} == {3, 4}


@given(
    hnp.arrays(np.float32, 300, elements=st.floats(-9, 9, width=32)),
    hnp.arrays(np.bool_, 300).filter(np.any),
    st.sampled_from([{}, {"temperature": 0}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2, "frequency_penalty": 1}]),
    st.integers(0, 99),
)
def test_a_mask_has_the_effect_of_impossible_logits(
    logits: Logits, allowed: np.ndarray, options: dict[str, Any], seed: int
) -> None:
    masked = Sampler(GenerationOptions(seed=seed, **options), [1])
    plain = Sampler(GenerationOptions(seed=seed, **options), [1])
    impossible = np.where(allowed, logits, np.finfo(np.float32).min)
    for _ in range(4):
        token = masked.sample(logits, allowed)
        assert allowed[token]
        if options.keys().isdisjoint(("top_k", "top_p")):  # these reorder the tokens, so that the draws differ
            assert token == plain.sample(impossible)


def test_logit_bias_with_nano(engine: Engine, harmony: Harmony) -> None:
    prompt = harmony.render([Message("user", "What is the capital of France?")])
    plain = list(engine.generate(prompt, GenerationOptions(temperature=0, max_new_tokens=20)))
    banned = GenerationOptions(temperature=0, max_new_tokens=20, logit_bias={plain[0]: -100})
    assert plain[0] not in list(engine.generate(prompt, banned))


def test_logit_bias_outside_the_vocabulary_is_rejected() -> None:
    engine = ScriptedEngine([], vocab_size=100)
    with pytest.raises(InvalidRequest, match="logit_bias"):
        engine.generate([1], GenerationOptions(logit_bias={100: 1}))
    assert engine.prompts == []
