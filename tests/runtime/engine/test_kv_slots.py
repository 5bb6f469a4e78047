"""The KV cache pool: which sequence is taken, which are kept, and that tokens do not depend on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_runtime import Engine, GenerationOptions, InvalidRequest, ResourceError, load_engine
from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.engine.genai import GenaiEngine, _Sequence
from gptoss_runtime.engine.kv_slots import KVSlotPool, common_prefix

GREEDY = GenerationOptions(temperature=0, max_new_tokens=8, stop_token_ids=())
PROMPT = [int(token) for token in np.random.default_rng(1).integers(0, 199998, 300)]


class Cached:
    """A sequence without a model."""

    def __init__(self, tokens: list[int], capacity: int = 10) -> None:
        self.tokens, self.capacity = tokens, capacity
        self.owner: object = None


def fill(slots: KVSlotPool[Cached], *sequences: Cached) -> KVSlotPool[Cached]:
    for sequence in sequences:
        owner = object()
        slots.put(sequence, owner)
        slots.release(owner)
    return slots


def test_an_owner_gets_its_own_sequence() -> None:
    slots: KVSlotPool[Cached] = KVSlotPool(2, 100)
    one, other = object(), object()
    sequence = Cached([1])
    slots.put(sequence, one)
    slots.put(Cached([1, 2]), other)
    assert slots.take([1, 2, 3], one) is sequence


def test_the_longest_prefix_is_preferred_to_the_least_recently_used() -> None:
    oldest, like, newest = Cached([9, 9]), Cached([1, 2, 3, 4]), Cached([1, 2])
    slots = fill(KVSlotPool(3, 100), oldest, like, newest)
    assert slots.take([1, 2, 3, 4, 5], object()) is like
    assert slots.take([7, 7], object()) is None  # two are left, so there is a slot for a new one
    slots.put(Cached([3]), object())
    assert slots.take([7, 7], object()) is oldest


def test_a_short_prefix_does_not_evict_a_long_conversation() -> None:
    conversation = Cached([1, 2, *range(10, 60)])
    slots = fill(KVSlotPool(2, 100), conversation)
    assert slots.take([1, 2, 5], object()) is None
    assert fill(KVSlotPool(1, 100), conversation).take([1, 2, 5], object()) is conversation


def test_running_generations_are_evicted_only_if_the_pool_is_full() -> None:
    slots: KVSlotPool[Cached] = KVSlotPool(2, 100)
    first, second = Cached([1, 2, 3]), Cached([4])
    slots.put(first, object())
    assert slots.take([1, 2, 3, 4], object()) is None
    slots.put(second, object())
    assert slots.take([4, 5], object()) is first


def test_drop_removes_only_the_owners_sequence() -> None:
    slots: KVSlotPool[Cached] = KVSlotPool(3, 100)
    wrong, right = object(), object()
    slots.put(Cached([1, 2, 3]), wrong)
    slots.put(Cached([1, 2]), right)
    slots.drop(wrong)
    slots.release(wrong)
    assert len(slots) == 1
    assert slots.take([1, 2, 3, 4], wrong) is None
    assert slots.take([1, 2, 4], right) is not None


def test_trim_drops_the_least_recently_used_idle_sequences() -> None:
    running = object()
    slots: KVSlotPool[Cached] = KVSlotPool(4, 20)
    slots.put(Cached([5], capacity=50), running)
    old, middle, new = Cached([1]), Cached([2]), Cached([3])
    fill(slots, old, middle, new)
    slots.trim()
    assert len(slots) == 3
    assert slots.take([2, 2], object()) is middle
    assert slots.take([5, 5], running) is not None
    assert slots.clear(idle=True)
    assert len(slots) == 0


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 2), min_size=1, max_size=6), st.booleans())),
)
def test_the_pool_stays_within_its_bounds(count: int, steps: list[tuple[int, list[int], bool]]) -> None:
    slots: KVSlotPool[Cached] = KVSlotPool(count, 25)
    owners = [object() for _ in range(6)]
    for number, tokens, ends in steps:
        sequence = slots.take(tokens, owners[number]) or Cached([])
        shared = common_prefix(sequence.tokens, tokens)
        sequence.tokens[shared:] = tokens[shared:]
        slots.put(sequence, owners[number])
        if ends:
            slots.release(owners[number])
            slots.trim()
        sequences = slots._sequences
        assert len(sequences) <= count
        assert len({id(sequence.owner) for sequence in sequences if sequence.owner}) == sum(
            bool(s.owner) for s in sequences
        )
        assert sum(sequence.capacity for sequence in sequences if sequence.owner is None) <= 25


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_prefix(one: list[int], other: list[int]) -> None:
    length = common_prefix(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


@pytest.fixture
def several(nano_artifact: Path) -> GenaiEngine:
    return GenaiEngine(Artifact.open(nano_artifact), threads=1, slots=3)


def test_each_conversation_keeps_its_cache(several: GenaiEngine, engine: Engine) -> None:
    histories = [PROMPT[:80], PROMPT[80:200], PROMPT[200:]]
    for turn in range(3):
        for history in histories:
            generation = several.generate(history, GREEDY)
            tokens = list(generation)
            assert tokens == list(engine.generate(history, GREEDY))
            assert generation.result.usage.cached_tokens >= (len(history) - 10 if turn else 0)
            history += [*tokens, 5, 6]
    assert len(several._slots) == 3


def test_interleaved_generations_compute_each_token_once(
    several: GenaiEngine, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [PROMPT[:80], PROMPT[80:200], PROMPT[200:]]
    expected = [list(engine.generate(prompt, GREEDY)) for prompt in prompts]
    computed: list[int] = []
    append = _Sequence.append
    monkeypatch.setattr(_Sequence, "append", lambda self, tokens: (computed.extend(tokens), append(self, tokens))[1])
    rows = list(zip(*(several.generate(prompt, GREEDY) for prompt in prompts), strict=True))
    assert [list(column) for column in zip(*rows, strict=True)] == expected
    assert len(computed) == 300 + 3 * 7


def test_idle_sequences_are_dropped_if_memory_is_short(several: GenaiEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(several.generate(PROMPT[:80], GREEDY))
    init = _Sequence.__init__

    def fail_if_not_empty(self: _Sequence, engine: GenaiEngine, capacity: int) -> None:
        if len(several._slots):
            raise RuntimeError("Could not allocate the key-value cache buffer")
        init(self, engine, capacity)

    monkeypatch.setattr(_Sequence, "__init__", fail_if_not_empty)
    list(several.generate(PROMPT[100:], GREEDY))
    assert list(several.generate(PROMPT[:80], GREEDY)) == expected
    running = several.generate(PROMPT[:80], GREEDY)
    next(running)
    with pytest.raises(ResourceError):
        next(several.generate(PROMPT[100:], GREEDY))
    assert list(running) == expected[1:]


def test_idle_memory_is_bounded(several: GenaiEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_runtime.engine.genai._INITIAL_CAPACITY", several.info.context_length)
    for start in range(3):
        with several.generate(PROMPT[start * 50 :], GenerationOptions(temperature=0, stop_token_ids=())) as generation:
            next(generation)
    assert 0 < sum(sequence.capacity for sequence in several._slots._sequences) <= 3 * 2048


def test_devices_that_cannot_append_have_one_slot(nano_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_runtime.engine.genai._APPENDING_DEVICES", frozenset())  # like DirectML
    engine = GenaiEngine(Artifact.open(nano_artifact), threads=1, slots=3)
    assert engine.slots == 1
    with engine.generate(PROMPT[:20], GREEDY) as generation:
        next(generation)
    assert len(engine._slots) == 0


@pytest.mark.parametrize("slots", [0, -1, True, 1.5])
def test_bad_slot_counts(nano_artifact: Path, slots: int) -> None:
    with pytest.raises(InvalidRequest, match="slots"):
        load_engine(nano_artifact, slots=slots)
