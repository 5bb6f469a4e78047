"""Turns, queues and errors of many generations, on an engine that reads prompts in pieces and says who worked when."""

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
PIECE = 4


class Pieces(LogitsEngine):
    """Says a prompt's first token for ever; ``work`` is the first token of whose turn it was, negative for a piece."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.info = ModelInfo("pieces", "none", "none", 1000, VOCABULARY, (99,))
        self.slots = slots
        self.work: list[int] = []
        self.fails: dict[int, Exception] = {}
        self._read: dict[object, int] = {}

    def _forward(self, tokens: list[int], *, owner: object, max_length: int) -> tuple[NDArray[np.float32] | None, int]:
        if tokens[0] in self.fails:
            raise self.fails[tokens[0]]
        read = self._read[owner] = min(self._read.get(owner, 0) + PIECE, len(tokens))
        self.work.append(tokens[0] if read == len(tokens) else -tokens[0])
        if read < len(tokens):
            return None, 0
        logits = np.zeros(VOCABULARY, np.float32)
        logits[tokens[0]] = 1
        return logits, 0

    def _release(self, owner: object) -> None:
        self._read.pop(owner, None)

    def logits(self, token_ids: Iterable[int], *, stepwise: bool = False) -> NDArray[np.float32]:
        return np.full((len(list(token_ids)), VOCABULARY), float(stepwise), np.float32)

    def close(self) -> None:
        raise AssertionError


class Bench:
    """A scheduler and everything it has said."""

    def __init__(self, slots: int = 2) -> None:
        self.engine = Pieces(slots)
        self.lists: list[list[WorkerEvent]] = []
        self.scheduler = Scheduler(self.engine, self.lists.append)

    @property
    def events(self) -> list[WorkerEvent]:
        return [event for events in self.lists for event in events]

    def begin(self, name: int, prompt_tokens: int = 1, new: int = 1000) -> None:
        options = GenerationOptions(temperature=0, max_new_tokens=new)
        self.scheduler.handle(GenerateRequest(name, array("i", [name] + [0] * (prompt_tokens - 1)), options))

    def turns(self, count: int, between: Callable[[], object] = lambda: None) -> None:
        for _ in range(count):
            self.scheduler.step(between)

    def tokens(self, name: int) -> list[int]:
        return [event.token for event in self.events if isinstance(event, TokenEvent) and event.id == name]

    def end(self, name: int) -> WorkerEvent:
        (event,) = [event for event in self.events if isinstance(event, EndEvent | ErrorEvent) and event.id == name]
        return event


def test_generations_are_scheduled_round_robin() -> None:
    bench = Bench(3)
    for name in (1, 2, 3):
        bench.begin(name)
    bench.turns(3)
    bench.engine.work.clear()
    bench.turns(4)
    assert bench.engine.work == [1, 2, 3] * 4


def test_a_long_prompt_delays_others_by_one_chunk() -> None:
    bench = Bench(4)
    bench.begin(1)
    bench.begin(2)
    bench.turns(2)
    bench.begin(3, prompt_tokens=5 * PIECE)
    bench.begin(4, prompt_tokens=5 * PIECE)
    bench.engine.work.clear()
    bench.turns(8)
    assert bench.engine.work == [1, 2, -3, 1, 2, -4] * 4  # pieces of two prompts take turns, too
    sent_before_a_piece = [event.id for event in bench.lists[-1] if isinstance(event, TokenEvent)]
    assert sent_before_a_piece == [1, 2]


def test_first_come_first_served() -> None:
    bench = Bench(1)
    for name in (1, 2, 3):
        bench.begin(name, new=2)
    bench.turns(20)
    assert [event.id for event in bench.events if isinstance(event, EndEvent)] == [1, 2, 3]
    assert bench.scheduler.idle
    assert bench.engine.work == [1, 1, 2, 2, 3, 3]
    ended = bench.end(3)
    assert isinstance(ended, EndEvent)
    assert ended.result is not None
    assert ended.result.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("prompt_tokens", [1, 40])
def test_cancel_frees_the_slot(prompt_tokens: int) -> None:
    bench = Bench(1)
    bench.begin(1, prompt_tokens)
    bench.begin(2)
    bench.begin(3)
    bench.turns(2)
    requests: list[WorkerRequest] = [CancelRequest(1), CancelRequest(3), CancelRequest(3), CancelRequest(77)]
    bench.turns(1, between=lambda: bench.scheduler.handle(requests.pop(0)) if requests else None)
    before = len(bench.tokens(1))
    for request in requests:
        bench.scheduler.handle(request)
    bench.turns(3)
    assert len(bench.tokens(1)) == before
    assert bench.tokens(2)
    assert bench.end(1) == EndEvent(1)
    assert bench.end(3) == EndEvent(3)
    assert not bench.engine._read.keys() - {bench.scheduler._running[2]._owner}


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
    bench = Bench(2)
    bench.engine.fails = {1: error}
    bench.begin(1)
    bench.begin(2, new=3)
    bench.turns(5)
    raised = bench.end(1)
    assert isinstance(raised, ErrorEvent)
    assert type(raised.error) is expected
    assert raised.error.remedy
    assert bench.tokens(2) == [2, 2, 2]
    assert bench.scheduler.device_lost == (expected is DeviceLost)
    assert ("KeyError" in capsys.readouterr().err) == isinstance(error, KeyError)


def test_a_request_that_cannot_start_does_not_block_the_next() -> None:
    bench = Bench(1)
    bench.scheduler.handle(GenerateRequest(1, array("i", []), GenerationOptions()))
    bench.begin(2, new=1)
    bench.turns(2)
    assert isinstance(bench.end(1), ErrorEvent)
    assert bench.tokens(2) == [2]


def test_logits_request() -> None:
    bench = Bench()
    bench.scheduler.handle(LogitsRequest(5, array("i", [1, 2]), True))
    (rows,) = bench.events
    assert isinstance(rows, LogitsEvent)
    assert rows.logits.shape == (2, VOCABULARY)
