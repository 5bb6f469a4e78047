"""The engine in a child process: its tokens, concurrent requests, cancellation and queueing."""

from __future__ import annotations

import gc
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from gptoss_runtime import (
    ContextOverflow,
    Engine,
    FinishReason,
    GenerationOptions,
    InvalidRequest,
    Overloaded,
    ResourceError,
)
from gptoss_runtime.engine_process.engine import ProcessEngine, ProcessGeneration
from gptoss_runtime.engine_process.messages import MessageWriter

GREEDY = GenerationOptions(temperature=0, max_new_tokens=8, stop_token_ids=())
ENDLESS = GenerationOptions(temperature=0, stop_token_ids=())
PROMPT = [int(token) for token in np.random.default_rng(2).integers(0, 199998, 3600)]
SLOTS = 3

EVERY_OPTION: dict[str, object] = {
    "max_new_tokens": 7,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.1,
    "presence_penalty": -0.1,
    "seed": 2**63 - 1,
    "stop_token_ids": (3, 4),
    "logprobs": 2,
    "logit_bias": {5: -1.5},
    "grammar": 'start: "a"',
}


@pytest.fixture(scope="module")
def process(nano_artifact: Path) -> Iterator[ProcessEngine]:
    with ProcessEngine.load(nano_artifact, threads=1, slots=SLOTS, queue=20) as engine:
        yield engine
    assert not engine.alive
    assert engine.memory() == 0


@pytest.fixture(autouse=True)
def _nothing_is_left_running(process: ProcessEngine) -> Iterator[None]:
    yield
    until(lambda: process.running == 0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_tokens_are_those_of_an_engine_in_this_process(process: ProcessEngine, engine: Engine) -> None:
    assert process.info == engine.info
    assert process.slots == SLOTS
    assert process.memory() > 2**20
    for options in (GREEDY, GenerationOptions(seed=4, max_new_tokens=20)):
        expected, actual = engine.generate(PROMPT[:50], options), process.generate(PROMPT[:50], options)
        assert list(actual) == list(expected)
        assert actual.result.usage.new_tokens == expected.result.usage.new_tokens
        assert actual.result.finish_reason == expected.result.finish_reason
        assert actual.result.stop_token == expected.result.stop_token
        assert actual.result.timings.time_to_first_token >= actual.result.timings.prefill_seconds > 0
        assert list(actual) == []


def test_logprobs_are_transferred(process: ProcessEngine, engine: Engine) -> None:
    options = GenerationOptions(temperature=0, max_new_tokens=5, logprobs=2)
    expected, actual = engine.generate(PROMPT[:50], options), process.generate(PROMPT[:50], options)
    for count, (one, other) in enumerate(zip(actual, expected, strict=True), start=1):
        assert one == other == actual.logprobs[-1].token
        assert len(actual.logprobs) == count
    assert [entry.token for entry in actual.logprobs] == [entry.token for entry in expected.logprobs]
    assert all(len(entry.top) == 2 for entry in actual.logprobs)
    np.testing.assert_allclose(
        [entry.logprob for entry in actual.logprobs], [entry.logprob for entry in expected.logprobs], atol=1e-3
    )


def test_grammars_are_enforced_and_their_errors_raised_in_the_parent(process: ProcessEngine, engine: Engine) -> None:
    options = GenerationOptions(temperature=0, max_new_tokens=20, grammar='start: "yes" | "no"')
    assert list(process.generate(PROMPT[:50], options)) == list(engine.generate(PROMPT[:50], options))
    with pytest.raises(InvalidRequest):
        next(process.generate(PROMPT[:50], GenerationOptions(grammar="start: (")))


def test_logits_are_the_same(process: ProcessEngine, engine: Engine) -> None:
    np.testing.assert_array_equal(process.logits(PROMPT[:9]), engine.logits(PROMPT[:9]))
    assert process.logits(PROMPT[:2], stepwise=True).shape == (2, engine.info.vocab_size)


def test_concurrent_generations_do_not_mix(process: ProcessEngine, engine: Engine) -> None:
    requests = [
        (PROMPT[at * 40 : at * 40 + 20 + at * 30], GenerationOptions(seed=at, max_new_tokens=15, stop_token_ids=()))
        for at in range(9)
    ]
    expected = [list(engine.generate(prompt, options)) for prompt, options in requests]
    found: dict[int, list[int]] = {}

    def ask(at: int) -> None:
        found[at] = list(process.generate(*requests[at]))

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(len(requests))] == expected


def test_generations_advance_concurrently(process: ProcessEngine) -> None:
    streams = [process.generate(PROMPT[at:20], ENDLESS) for at in range(SLOTS)]
    for stream in streams:
        next(stream)
    assert process.running == SLOTS  # they run at the same time
    waiting = process.generate(PROMPT[:30], GREEDY)
    assert process.waiting == 1
    streams[0].close()
    assert len(list(waiting)) == 8
    for stream in streams[1:]:
        stream.close()


def test_a_long_prompt_does_not_stall_other_generations(process: ProcessEngine) -> None:
    with process.generate(PROMPT[:10], ENDLESS) as stream:
        next(stream)
        with process.generate(PROMPT, GREEDY) as long:
            before = stream._request.replies.qsize()
            next(long)
            chunks = (len(PROMPT) - long._cached_tokens) // 128
            assert stream._request.replies.qsize() - before >= chunks - 1


def test_conversations_reuse_their_caches(process: ProcessEngine) -> None:
    histories = [PROMPT[start : start + 90] for start in (100, 300, 500)]
    for turn in range(3):
        for history in histories:
            generation = process.generate(history, GREEDY)
            history += list(generation)
            assert generation.result.usage.cached_tokens >= (len(history) - 17 if turn else 0)


def test_cancel_during_prefill(process: ProcessEngine, engine: Engine) -> None:
    with process.generate(PROMPT[:10], ENDLESS) as stream:
        next(stream)
        generation = process.generate([7, *PROMPT[:3500]], GREEDY)
        before = stream._request.replies.qsize()
        until(lambda: stream._request.replies.qsize() > before + 2)  # so at least one chunk has been computed
        generation.cancel()
        until(lambda: process.running == 1)
        assert list(generation) == []
        next(stream)
    assert generation.result.finish_reason is FinishReason.CANCELLED
    assert generation.result.usage.new_tokens == 0
    until(lambda: process.running == 0)
    assert list(process.generate([7, *PROMPT[:200]], GREEDY)) == list(engine.generate([7, *PROMPT[:200]], GREEDY))


def test_cancel_during_decoding(process: ProcessEngine) -> None:
    generation = process.generate(PROMPT[:10], ENDLESS)
    seen = []
    for token in generation:
        seen.append(token)
        if len(seen) == 3:
            generation.cancel()
    assert len(seen) == 3
    assert generation.result.finish_reason is FinishReason.CANCELLED
    assert generation.result.usage.new_tokens == 3
    assert generation.result.timings.decode_rate > 0


def test_cancel_from_another_thread_wakes_the_reader(process: ProcessEngine) -> None:
    running = [process.generate(PROMPT[:10], ENDLESS) for _ in range(SLOTS)]
    waiting = process.generate(PROMPT[:10], ENDLESS)
    timer = threading.Timer(0.05, waiting.cancel)
    timer.start()
    assert list(waiting) == []
    timer.join()
    assert waiting.result.finish_reason is FinishReason.CANCELLED
    for generation in running:
        generation.close()


def test_close_before_during_and_after(process: ProcessEngine) -> None:
    unread = process.generate(PROMPT[:10], GREEDY)
    with pytest.raises(RuntimeError, match="not ended"):
        _ = unread.result
    unread.close()
    unread.close()
    assert unread.result.finish_reason is FinishReason.CANCELLED
    assert list(unread) == []
    with process.generate(PROMPT[:10], ENDLESS) as running:
        next(running)
    assert running.result.finish_reason is FinishReason.CANCELLED
    with process.generate(PROMPT[:10], GREEDY) as ended:
        list(ended)
    assert ended.result.finish_reason is FinishReason.LENGTH


def test_a_garbage_collected_generation_frees_its_slot(process: ProcessEngine) -> None:
    for _ in range(2 * SLOTS):
        generation = process.generate(PROMPT[:10], ENDLESS)
        next(generation)
        del generation
        gc.collect()
    until(lambda: process.running == 0)


def test_bad_requests_start_nothing(process: ProcessEngine) -> None:
    with pytest.raises(InvalidRequest):
        process.generate([])
    with pytest.raises(InvalidRequest):
        process.generate([process.info.vocab_size])
    with pytest.raises(ContextOverflow):
        process.generate([1] * process.info.context_length)
    with pytest.raises(InvalidRequest):
        process.logits([-1])
    with pytest.raises(InvalidRequest):
        process.generate([1], GenerationOptions(logit_bias={process.info.vocab_size: 1.0}))
    assert process.running == 0


def test_the_queue_is_bounded(nano_artifact: Path) -> None:
    with ProcessEngine.load(nano_artifact, threads=1, slots=1, queue=1) as engine:
        running, waiting = engine.generate(PROMPT[:10], ENDLESS), engine.generate(PROMPT[:10], GREEDY)
        with pytest.raises(Overloaded) as caught:
            engine.generate(PROMPT[:10], GREEDY)
        assert isinstance(caught.value, ResourceError)
        assert caught.value.retry_after >= 1
        assert caught.value.remedy
        assert (engine.running, engine.waiting) == (1, 1)
        running.close()
        assert len(list(waiting)) == 8
        assert len(list(engine.generate(PROMPT[:10], GREEDY))) == 8


def test_options_and_errors_can_be_pickled() -> None:
    names = GenerationOptions.names()
    assert set(names) <= EVERY_OPTION.keys()
    options = GenerationOptions(**{name: EVERY_OPTION[name] for name in names})  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(options)) == options
    error = Overloaded("full", remedy="wait", retry_after=2.5)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.remedy, copy.retry_after) == (str(error), "wait", 2.5)


def test_many_threads_can_write_to_one_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    with path.open("wb", buffering=0) as file:
        writer = MessageWriter(file)
        threads = [
            threading.Thread(target=lambda name=name: [writer.send((name, number)) for number in range(200)])
            for name in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    writer.send("after the end")
    assert writer.broken
    with path.open("rb") as file:
        messages = [pickle.load(file) for _ in range(1600)]
        assert file.read() == b""
    for name in range(8):
        assert [number for sender, number in messages if sender == name] == list(range(200))


def test_a_generation_keeps_its_engine_alive(nano_artifact: Path) -> None:
    generation = ProcessEngine.load(nano_artifact, threads=1).generate(PROMPT[:10], GREEDY)
    assert isinstance(generation, ProcessGeneration)
    child = psutil.Process(generation._engine.pid)
    assert len(list(generation)) == 8
    assert child.is_running()
    del generation
    gc.collect()
    until(lambda: not child.is_running())


@pytest.mark.integration
def test_an_idle_child_preloads_the_grammar_vocabulary(nano_artifact: Path) -> None:
    """Observed by its memory, before any grammar is requested."""
    with ProcessEngine.load(nano_artifact, threads=1) as engine:
        list(engine.generate([1], GREEDY))
        before, end = engine.memory(), time.monotonic() + 60
        while engine.memory() < before + 20 * 2**20:
            assert time.monotonic() < end, "nothing was loaded"
            time.sleep(0.02)
        assert list(engine.generate([1], GenerationOptions(stop_token_ids=(), grammar='start: "a"'))) == [64]
