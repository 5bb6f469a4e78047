"""Scheduling, queueing and errors of concurrent generations, on a fake engine that records its forward passes."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_runtime import DeviceLost, FinishReason, GenerationOptions, InvalidRequest, ResourceError
from gptoss_runtime.engine.decoding import LogitsEngine
from gptoss_runtime.engine.results import ModelInfo
from gptoss_runtime.engine_process.messages import (
    CancelRequest,
    EndEvent,
    ErrorEvent,
    GenerateRequest,
    LogitsEvent,
    LogitsRequest,
    TokenEvent,
    WorkerEvent,
    WorkerRequest,
)
from gptoss_runtime.engine_process.scheduler import Scheduler
from gptoss_runtime.errors import BackendError

VOCABULARY = 100
CHUNK = 4


class ChunkedEngine(LogitsEngine):
    """Repeats a prompt's first token for ever, and computes prompts in chunks.

    ``work`` records the forward passes: the first token of the prompt, negative for a prompt chunk.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.info = ModelInfo("chunked", "none", "none", 1000, VOCABULARY, (99,))
        self.slots = slots
        self.work: list[int] = []
        self.fails: dict[int, Exception] = {}
        self._computed: dict[object, int] = {}

    def _forward(self, tokens: list[int], *, owner: object, max_length: int) -> tuple[NDArray[np.float32] | None, int]:
        if tokens[0] in self.fails:
            raise self.fails[tokens[0]]
        computed = self._computed[owner] = min(self._computed.get(owner, 0) + CHUNK, len(tokens))
        self.work.append(tokens[0] if computed == len(tokens) else -tokens[0])
        if computed < len(tokens):
            return None, 0
        logits = np.zeros(VOCABULARY, np.float32)
        logits[tokens[0]] = 1
        return logits, 0

    def _release(self, owner: object) -> None:
        self._computed.pop(owner, None)

    def logits(self, token_ids: Iterable[int], *, stepwise: bool = False) -> NDArray[np.float32]:
        return np.full((len(list(token_ids)), VOCABULARY), float(stepwise), np.float32)

    def close(self) -> None:
        raise AssertionError


class SchedulerHarness:
    """A scheduler and the events that it has sent."""

    def __init__(self, slots: int = 2) -> None:
        self.engine = ChunkedEngine(slots)
        self.batches: list[list[WorkerEvent]] = []
        self.scheduler = Scheduler(self.engine, self.batches.append)

    @property
    def events(self) -> list[WorkerEvent]:
        return [event for events in self.batches for event in events]

    def begin(self, name: int, prompt_tokens: int = 1, new: int = 1000) -> None:
        options = GenerationOptions(temperature=0, max_new_tokens=new)
        self.scheduler.handle(GenerateRequest(name, array("i", [name] + [0] * (prompt_tokens - 1)), options))

    def steps(self, count: int, between: Callable[[], object] = lambda: None) -> None:
        for _ in range(count):
            self.scheduler.step(between)

    def tokens(self, name: int) -> list[int]:
        return [event.token for event in self.events if isinstance(event, TokenEvent) and event.id == name]

    def end(self, name: int) -> WorkerEvent:
        (event,) = [event for event in self.events if isinstance(event, EndEvent | ErrorEvent) and event.id == name]
        return event


def test_generations_are_scheduled_round_robin() -> None:
    harness = SchedulerHarness(3)
    for name in (1, 2, 3):
        harness.begin(name)
    harness.steps(3)
    harness.engine.work.clear()
    harness.steps(4)
    assert harness.engine.work == [1, 2, 3] * 4


def test_a_long_prompt_delays_others_by_one_chunk() -> None:
    harness = SchedulerHarness(4)
    harness.begin(1)
    harness.begin(2)
    harness.steps(2)
    harness.begin(3, prompt_tokens=5 * CHUNK)
    harness.begin(4, prompt_tokens=5 * CHUNK)
    harness.engine.work.clear()
    harness.steps(8)
    assert harness.engine.work == [1, 2, -3, 1, 2, -4] * 4  # chunks of the two prompts alternate
    sent_before_a_chunk = [event.id for event in harness.batches[-1] if isinstance(event, TokenEvent)]
    assert sent_before_a_chunk == [1, 2]


def test_first_come_first_served() -> None:
    harness = SchedulerHarness(1)
    for name in (1, 2, 3):
        harness.begin(name, new=2)
    harness.steps(20)
    assert [event.id for event in harness.events if isinstance(event, EndEvent)] == [1, 2, 3]
    assert harness.scheduler.idle
    assert harness.engine.work == [1, 1, 2, 2, 3, 3]
    ended = harness.end(3)
    assert isinstance(ended, EndEvent)
    assert ended.result is not None
    assert ended.result.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("prompt_tokens", [1, 40])
def test_cancel_frees_the_slot(prompt_tokens: int) -> None:
    harness = SchedulerHarness(1)
    harness.begin(1, prompt_tokens)
    harness.begin(2)
    harness.begin(3)
    harness.steps(2)
    requests: list[WorkerRequest] = [CancelRequest(1), CancelRequest(3), CancelRequest(3), CancelRequest(77)]
    harness.steps(1, between=lambda: harness.scheduler.handle(requests.pop(0)) if requests else None)
    before = len(harness.tokens(1))
    for request in requests:
        harness.scheduler.handle(request)
    harness.steps(3)
    assert len(harness.tokens(1)) == before
    assert harness.tokens(2)
    assert harness.end(1) == EndEvent(1)
    assert harness.end(3) == EndEvent(3)
    assert not harness.engine._computed.keys() - {harness.scheduler._running[2]._owner}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvalidRequest("odd", remedy="even"), InvalidRequest),
        (MemoryError(), ResourceError),
        (KeyError("bug"), BackendError),
        (DeviceLost("reset", remedy="again"), DeviceLost),
    ],
)
def test_an_error_affects_only_its_own_generation(
    error: Exception, expected: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    harness = SchedulerHarness(2)
    harness.engine.fails = {1: error}
    harness.begin(1)
    harness.begin(2, new=3)
    harness.steps(5)
    raised = harness.end(1)
    assert isinstance(raised, ErrorEvent)
    assert type(raised.error) is expected
    assert raised.error.remedy
    assert harness.tokens(2) == [2, 2, 2]
    assert harness.scheduler.device_lost == (expected is DeviceLost)
    assert ("KeyError" in capsys.readouterr().err) == isinstance(error, KeyError)


def test_a_request_that_cannot_start_does_not_block_the_next() -> None:
    harness = SchedulerHarness(1)
    harness.scheduler.handle(GenerateRequest(1, array("i", []), GenerationOptions()))
    harness.begin(2, new=1)
    harness.steps(2)
    assert isinstance(harness.end(1), ErrorEvent)
    assert harness.tokens(2) == [2]


def test_logits_request() -> None:
    harness = SchedulerHarness()
    harness.scheduler.handle(LogitsRequest(5, array("i", [1, 2]), True))
    (rows,) = harness.events
    assert isinstance(rows, LogitsEvent)
    assert rows.logits.shape == (2, VOCABULARY)
