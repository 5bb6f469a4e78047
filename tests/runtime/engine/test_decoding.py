from __future__ import annotations

from typing import Any

import pytest

from gptoss_runtime import FinishReason, GenerationOptions, InvalidRequest
from gptoss_runtime.engine.scripted import ScriptedEngine
from gptoss_runtime.harmony_tokens import RETURN

GREEDY = GenerationOptions(temperature=0)


def test_a_stop_token_ends_generation_and_is_yielded() -> None:
    generation = ScriptedEngine([[7, 8]]).generate([1, 2, 3], GREEDY)
    assert list(generation) == [7, 8, RETURN]
    result = generation.result
    assert (result.finish_reason, result.stop_token) == (FinishReason.STOP, RETURN)
    assert (result.usage.prompt_tokens, result.usage.new_tokens) == (3, 3)


def test_stop_token_ids_replace_the_artifacts() -> None:
    generation = ScriptedEngine([[7, RETURN, 8, 9]]).generate([1], GenerationOptions(stop_token_ids=(8,)))
    assert list(generation) == [7, RETURN, 8]
    assert generation.result.stop_token == 8


@pytest.mark.parametrize(("limit", "expected"), [(2, 2), (None, 5), (99, 5)])
def test_max_new_tokens_and_a_full_context_end_with_length(limit: int | None, expected: int) -> None:
    options = GenerationOptions(max_new_tokens=limit, stop_token_ids=())
    generation = ScriptedEngine([[7] * 50], context_length=10).generate([1] * 5, options)
    assert len(list(generation)) == expected
    assert generation.result.finish_reason is FinishReason.LENGTH


def test_a_stop_token_at_the_limit_counts_as_stop() -> None:
    generation = ScriptedEngine([[7]]).generate([1], GenerationOptions(max_new_tokens=2))
    assert list(generation)[-1] == RETURN
    assert generation.result.finish_reason is FinishReason.STOP


def test_cancel_takes_effect_within_one_token() -> None:
    engine = ScriptedEngine([[7] * 50, [8]])
    generation = engine.generate([1], GREEDY)
    seen = []
    for token in generation:
        seen.append(token)
        if len(seen) == 3:
            generation.cancel()
    assert seen == [7, 7, 7]
    assert generation.result.finish_reason is FinishReason.CANCELLED
    assert list(engine.generate([1], GREEDY)) == [8, RETURN]


def test_close_before_during_and_after() -> None:
    engine = ScriptedEngine([[7] * 50, [8]])
    unstarted = engine.generate([1], GREEDY)
    with pytest.raises(RuntimeError, match="not ended"):
        _ = unstarted.result
    unstarted.close()
    assert unstarted.result.finish_reason is FinishReason.CANCELLED
    assert list(unstarted) == []
    with engine.generate([1], GREEDY) as running:
        next(running)
    assert running.result.finish_reason is FinishReason.CANCELLED
    with engine.generate([1], GREEDY) as ended:
        list(ended)
    assert ended.result.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("raised", "reason"), [(MemoryError, FinishReason.ERROR), (KeyboardInterrupt, FinishReason.CANCELLED)]
)
def test_a_failed_generation_has_a_result(raised: type[BaseException], reason: FinishReason) -> None:
    class Failing(ScriptedEngine):
        def _forward(self, tokens: list[int], *, owner: object, max_length: int) -> Any:
            if len(tokens) == 3:
                raise raised
            return super()._forward(tokens, owner=owner, max_length=max_length)

    generation = Failing([[7] * 9]).generate([1], GREEDY)
    assert [next(generation), next(generation)] == [7, 7]
    with pytest.raises(raised):
        next(generation)
    assert (generation.result.finish_reason, generation.result.stop_token) == (reason, None)
    assert (generation.result.usage.prompt_tokens, generation.result.usage.new_tokens) == (1, 2)
    assert list(generation) == []


def test_bad_prompts_start_nothing() -> None:
    engine = ScriptedEngine([])
    with pytest.raises(InvalidRequest):
        engine.generate([])
    assert engine.prompts == []
