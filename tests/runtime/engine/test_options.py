from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_runtime import ContextOverflow, GenerationOptions, InvalidRequest
from gptoss_runtime.engine.options import check_token_ids

BAD = {
    "max_new_tokens": [0, -1, 1.5, "3", True, 2**60],
    "temperature": [math.nan, math.inf, -0.1, 2.1, "1", None, True],
    "top_p": [0, -1, 5, math.nan],
    "top_k": [-1, 0.5, None],
    "min_p": [-0.1, 1.1, math.nan],
    "repetition_penalty": [0, -1, math.inf, math.nan],
    "frequency_penalty": [2.5, math.nan],
    "presence_penalty": [-2.5, math.nan],
    "seed": [-1, 2**64, 1.0, math.nan],
    "logprobs": [-1, 21, 1.5, True, "1", 10**6],
    "logit_bias": [
        dict.fromkeys(range(1025), 1),
        {1: 101},
        {1: -100.5},
        {-1: 0},
        {"a": 1},
        {1: math.nan},
        {True: 1},
        {1.5: 1},
        "abc",
        5,
        None,
    ],
    "grammar": ["", 5, b"start: X", "x" * 2**21, "\ud800"],
    "stop_token_ids": [(-1,), ("a",), "abc", (1.5,), tuple(range(1000)), 3.5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_values_name_the_option_and_the_remedy(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        GenerationOptions(**{name: value})  # type: ignore[arg-type]
    assert name in str(caught.value.remedy) or name == "stop_token_ids"


def test_a_number_too_long_to_print() -> None:
    with pytest.raises(InvalidRequest, match="top_k"):
        GenerationOptions(top_k=10**5000)
    with pytest.raises(InvalidRequest, match="logit_bias"):
        GenerationOptions(logit_bias={10**5000: 1})


def test_every_option_is_tested() -> None:
    assert set(BAD) == set(GenerationOptions.names())


def test_defaults_and_edges_are_valid() -> None:
    GenerationOptions()
    GenerationOptions(1, 2, 1, 0, 1, 10, 2, -2, 2**63 - 1, (), 20, {0: 100, 1: -100}, "start: X")
    biased = GenerationOptions(logit_bias={np.int64(3): 1, 4: -2.5})
    assert biased.logit_bias == ((3, 1.0), (4, -2.5))
    assert len({biased, replace(biased), pickle.loads(pickle.dumps(biased))}) == 1
    assert GenerationOptions(stop_token_ids=[1, 2]).stop_token_ids == (1, 2)  # type: ignore[arg-type]
    assert GenerationOptions(temperature=np.float32(0.5)).temperature == 0.5


@given(st.sampled_from(GenerationOptions.names()), st.one_of(st.floats(), st.integers(), st.text(), st.none()))
def test_any_value_is_accepted_or_rejected_with_invalid_request(name: str, value: object) -> None:
    try:
        options = GenerationOptions(**{name: value})  # type: ignore[arg-type]
    except InvalidRequest as error:
        assert error.remedy  # noqa: PT017
    else:
        number = getattr(options, name)
        assert number is None or isinstance(number, tuple | str) or math.isfinite(number)


def check(ids: object, context_length: int = 10) -> list[int]:
    return check_token_ids(ids, vocab_size=100, context_length=context_length)  # type: ignore[arg-type]


def test_bad_prompts() -> None:
    assert check([1, np.int64(2)]) == check(np.array([1, 2])) == check(iter([1, 2])) == [1, 2]
    assert all(type(token) is int for token in check(np.array([1, 2], np.int32)))
    for bad in ([], [100], [-1], [1.0], ["1"], [True], "12", b"12", np.zeros((1, 2), int), np.zeros(2), [None]):
        with pytest.raises(InvalidRequest):
            check(bad)


def test_a_prompt_must_leave_room_for_an_answer() -> None:
    assert len(check([1] * 9)) == 9
    with pytest.raises(ContextOverflow, match="10 tokens"):
        check([1] * 10)
