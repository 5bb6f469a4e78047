"""Logits that are not finite raise ``NumericalError``, whatever the options; no token is sampled from them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

from gptoss_runtime import (
    BackendError,
    Chat,
    ChatEvent,
    ContentDelta,
    Engine,
    Finish,
    FinishReason,
    GenerationOptions,
    Message,
    NumericalError,
    Tool,
)
from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.cli.main import app
from gptoss_runtime.engine.genai import GenaiEngine
from gptoss_runtime.engine.sampling import Sampler, compute_logprobs
from gptoss_runtime.engine_process.engine import ProcessEngine
from gptoss_runtime.harmony_tokens import STOP_TOKENS, VOCAB_SIZE
from tests.harmony_tools import encode_marked
from tests.nonfinite import FAULTS, FaultyEngine, Logits, with_infinite_norm, with_poisoned_token
from tests.tiers import mostly_integration

VOCABULARY = 300
GREEDY = GenerationOptions(temperature=0, max_new_tokens=8, stop_token_ids=())
HELLO, REPLY = "hello", "Hello! How can I help"  # nano's reply, up to the poisoned token
POISON = " help"

options_of_any_kind = st.builds(
    GenerationOptions,
    temperature=st.just(0.0) | st.floats(0, 2),
    top_p=st.just(1.0) | st.floats(0.001, 1),
    top_k=st.just(0) | st.integers(0, 2 * VOCABULARY),
    min_p=st.just(0.0) | st.floats(0, 1),
    repetition_penalty=st.just(1.0) | st.floats(0.001, 10),
    frequency_penalty=st.just(0.0) | st.floats(-2, 2),
    presence_penalty=st.just(0.0) | st.floats(-2, 2),
    seed=st.integers(0, 99),
    logprobs=st.none() | st.integers(0, 20),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.sampled_from([-100.0, 0.5, 100.0]), max_size=4),
    stop_token_ids=st.just(()),
    max_new_tokens=st.just(6),
)
masks = st.none() | hnp.arrays(np.bool_, VOCABULARY).filter(np.any)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    options_of_any_kind,
    st.sampled_from(sorted(FAULTS)),
    st.integers(0, VOCABULARY - 1),
    masks,
    hnp.arrays(np.float32, VOCABULARY, elements=finite),
)
def test_the_sampler_rejects_them_with_every_option(
    options: GenerationOptions, fault: str, at: int, allowed: np.ndarray | None, logits: Logits
) -> None:
    sampler = Sampler(options, [1, 2])
    sampler.sample(np.zeros(VOCABULARY, np.float32))  # so that penalties apply
    FAULTS[fault](logits, at)
    before = logits.copy()
    with pytest.raises(NumericalError, match="not finite"):
        sampler.sample(logits, allowed)
    np.testing.assert_array_equal(logits, before)


@given(options_of_any_kind, masks, hnp.arrays(np.float32, VOCABULARY, elements=finite))
def test_finite_logits_always_give_a_token(
    options: GenerationOptions, allowed: np.ndarray | None, logits: Logits
) -> None:
    """Includes values near the limits of float32, where a penalty, a temperature or a difference would overflow."""
    sampler = Sampler(options, [1, 2])
    for _ in range(3):
        token = sampler.sample(logits, allowed)
        assert allowed is None or allowed[token]
        found = compute_logprobs(logits, token, 20)
        assert np.isfinite([found.logprob, *(value for _, value in found.top)]).all()
        assert max(value for _, value in found.top) <= 0


@pytest.mark.parametrize("extreme", [np.finfo(np.float32).max, np.finfo(np.float32).tiny])
def test_the_highest_of_extreme_logits_is_sampled(extreme: np.float32) -> None:
    logits = np.full(VOCABULARY, -extreme, np.float32)
    logits[[3, 7]] = extreme
    for more in ({}, {"temperature": 0.001}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.5}):
        drawn = {Sampler(GenerationOptions(seed=seed, **more), []).sample(logits) for seed in range(40)}  # type: ignore[arg-type]
        assert drawn <= {3, 7} or extreme < 1
    assert Sampler(GenerationOptions(temperature=0, repetition_penalty=0.01), [3, 7]).sample(logits) == 3


def test_the_message_counts_them() -> None:
    logits = np.zeros(VOCAB_SIZE, np.float32)
    logits[:3], logits[5], logits[7:9] = np.nan, np.inf, -np.inf
    with pytest.raises(NumericalError, match=r"^logits are not finite \(3 NaN, 1 \+inf, 2 -inf of 201,088\)$"):
        Sampler(GenerationOptions(), []).sample(logits)


@given(options_of_any_kind, st.sampled_from(sorted(FAULTS)), st.integers(0, VOCABULARY - 1), st.integers(0, 5))
def test_a_generation_raises_the_error(options: GenerationOptions, fault: str, at: int, step: int) -> None:
    engine = FaultyEngine([[7] * 9] * 2, {0: (step, fault)}, at=at, vocab_size=VOCABULARY)
    generation = engine.generate([1, 2, 3], options)
    yielded: list[int] = []
    with pytest.raises(NumericalError) as caught:
        yielded.extend(generation)
    assert len(yielded) == step
    assert f"after {3 + step} tokens, {step} of them generated" in caught.value.message
    assert "scripted (target none) overflowed on none, or its weights are damaged" in caught.value.message
    assert "gptoss doctor ARTIFACT --check" in (caught.value.remedy or "")
    result = generation.result
    assert (result.finish_reason, result.stop_token) == (FinishReason.ERROR, None)
    assert (result.usage.prompt_tokens, result.usage.new_tokens) == (3, step)
    assert len(generation.logprobs) == (0 if options.logprobs is None else step)
    assert list(generation) == []
    assert engine.discarded == 1
    generation.close()
    assert generation.result is result
    again = engine.generate([1, 2, 3], options)
    assert len(list(again)) == 6
    assert again.result.finish_reason is FinishReason.LENGTH
    assert engine.discarded == 1


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("more", [{}, {"temperature": 0}, {"min_p": 0.1}, {"logprobs": 5}], ids=str)
@pytest.mark.parametrize("step", [0, 2])
def test_a_grammar_does_not_hide_the_error(nano_artifact: Path, fault: str, more: dict[str, Any], step: int) -> None:
    engine = FaultyEngine([[]], {0: (step, fault)}, tokenizer=nano_artifact / "tokenizer.json")
    generation = engine.generate([1], GenerationOptions(grammar="start: /a{9}b{9}/", seed=1, **more))
    yielded: list[int] = []
    with pytest.raises(NumericalError):
        yielded.extend(generation)
    assert len(yielded) == generation.result.usage.new_tokens == step
    assert generation.result.finish_reason is FinishReason.ERROR


def test_the_error_can_be_pickled() -> None:
    sent = pickle.loads(pickle.dumps(NumericalError("not finite", remedy="Try.")))
    assert isinstance(sent, BackendError)
    assert (type(sent), sent.message, sent.remedy) == (NumericalError, "not finite", "Try.")


def test_a_failed_turn_leaves_the_conversation_unchanged(harmony: Harmony) -> None:
    ran: list[int] = []
    call = encode_marked(harmony, '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>')
    answer = encode_marked(harmony, "<|channel|>final<|message|>It is three.<|return|>")
    engine = FaultyEngine([call, answer, answer, answer], {1: (len(answer) - 2, "all NaN"), 2: (0, "one -inf")})
    chat = Chat(engine, harmony, tools=[Tool("f", function=ran.append)], options=GenerationOptions(temperature=0))
    events: list[ChatEvent] = []
    with pytest.raises(NumericalError):
        events.extend(chat.stream("x"))
    assert "".join(event.text for event in events if isinstance(event, ContentDelta)) == "It is three"
    finish = events[-1]
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.malformed) == ("error", False)
    assert finish.result is not None
    assert finish.result.usage.new_tokens == len(answer) - 2
    assert sum(isinstance(event, Finish) for event in events) == 1
    assert chat.messages == []
    with pytest.raises(NumericalError):
        chat.send("x")
    assert chat.messages == []
    assert chat.send("x").content == "It is three."
    assert [message.role for message in chat.messages] == ["user", "assistant"]


@pytest.fixture(scope="module")
def infinite(nano_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_infinite_norm(nano_artifact, tmp_path_factory.mktemp("infinite"))


@pytest.fixture(scope="module")
def poisoned(nano_artifact: Path, harmony: Harmony, tmp_path_factory: pytest.TempPathFactory) -> Path:
    [token] = harmony.encode(POISON)
    return with_poisoned_token(nano_artifact, tmp_path_factory.mktemp("poisoned"), token)


@pytest.fixture(scope="module")
def process(poisoned: Path) -> Iterator[ProcessEngine]:
    with ProcessEngine.load(poisoned, threads=1, slots=2) as engine:
        yield engine


def test_the_cache_of_a_failed_generation_is_dropped(poisoned: Path, engine: Engine, harmony: Harmony) -> None:
    prompt, poison = harmony.encode("One two three four five six seven"), harmony.encode(POISON)
    with GenaiEngine(Artifact.open(poisoned), threads=1) as damaged:
        expected = list(engine.generate(prompt, GREEDY))
        assert list(damaged.generate(prompt, GREEDY)) == expected
        for bad in (poison, prompt + poison, poison + prompt):
            generation = damaged.generate(bad, GREEDY)
            with pytest.raises(NumericalError, match=r"gptoss-nano-cpu \(target cpu\) overflowed on cpu") as caught:
                list(generation)
            assert "201,088 NaN of 201,088" in caught.value.message
            assert generation.result.finish_reason is FinishReason.ERROR
            assert len(damaged._slots) == 0
            again = damaged.generate(prompt, GREEDY)
            assert list(again) == expected
            assert again.result.usage.cached_tokens == 0
        assert not np.isfinite(damaged.logits(prompt + poison)[-1]).any()  # parity sees what the model returned
        assert np.isfinite(damaged.logits(prompt)).all()


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_k": 3, "min_p": 0.2, "logprobs": 3}], ids=str)
def test_other_generations_in_the_process_continue(
    process: ProcessEngine, engine: Engine, harmony: Harmony, options: dict[str, Any]
) -> None:
    pid, prompt, [poison] = process.pid, harmony.encode("One two three four five six seven"), harmony.encode(POISON)
    endless = GenerationOptions(temperature=0, max_new_tokens=60, stop_token_ids=(), logit_bias={poison: -100})
    other = process.generate(prompt, endless)
    reply = [next(other)]
    waiting = process.generate(prompt, GREEDY), process.generate([*prompt, poison], GREEDY)
    bad = process.generate(harmony.encode(f"Go{POISON}"), GenerationOptions(seed=1, **options))
    with pytest.raises(NumericalError, match="201,088 NaN of 201,088") as caught:
        list(bad)
    assert caught.value.remedy
    assert bad.result.finish_reason is FinishReason.ERROR
    assert (bad.result.usage.prompt_tokens, bad.result.usage.new_tokens) == (2, 0)
    assert list(waiting[0]) == list(engine.generate(prompt, GREEDY))
    with pytest.raises(NumericalError):
        list(waiting[1])
    assert reply + list(other) == list(engine.generate(prompt, endless))
    assert (process.pid, process.restarts, process.running, process.waiting) == (pid, 0, 0, 0)


def test_tokens_yielded_before_the_error_are_counted(process: ProcessEngine, engine: Engine, harmony: Harmony) -> None:
    prompt = harmony.render([Message("user", HELLO)])
    options = GenerationOptions(temperature=0, stop_token_ids=STOP_TOKENS, logprobs=1)
    expected = list(engine.generate(prompt, options))
    generation = process.generate(prompt, options)
    yielded: list[int] = []
    with pytest.raises(NumericalError) as caught:
        yielded.extend(generation)
    assert yielded == expected[: len(yielded)]
    assert harmony.decode(yielded).endswith(REPLY)
    assert f"{len(yielded)} of them generated" in caught.value.message
    usage = generation.result.usage
    assert (usage.prompt_tokens, usage.new_tokens) == (len(prompt), len(yielded))
    assert [entry.token for entry in generation.logprobs] == yielded
    assert generation.result.timings.decode_rate > 0


@pytest.fixture
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_runtime.artifact.vocabulary.platformdirs.user_cache_dir", lambda *_, **__: str(cache))


def run(*arguments: object, text: str | None = None) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)
    assert result.exit_code == 6
    assert result.stderr.startswith("error: logits are not finite (201,088 ")
    assert "gptoss doctor ARTIFACT --check" in result.stderr
    assert "Traceback" not in result.output
    return result


SAMPLERS = [(), ("--temperature", 0), ("--top-k", 5, "--seed", 1), ("--top-p", 0.5)]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("more", mostly_integration(SAMPLERS, fast={()}), ids=str)
@pytest.mark.parametrize("asked", [("--prompt", "hello"), ("--prompt", "x", "--raw"), ("--ids", "1,2")], ids=str)
def test_generate_exits_with_code_6(infinite: Path, asked: tuple[str, ...], more: tuple[object, ...]) -> None:
    plain = run("generate", infinite, *asked, *more)
    assert plain.stdout.strip() in ("", "[incomplete: the engine failed]")
    report = json.loads(run("generate", infinite, *asked, *more, "--json").stdout)
    assert (report["finish_reason"], report["ids"], report["usage"]["new_tokens"]) == ("error", [], 0)


@pytest.mark.usefixtures("own_cache")
def test_generate_prints_what_was_generated_before(poisoned: Path) -> None:
    asked = ("--prompt", HELLO, "--temperature", 0)
    lines = run("generate", poisoned, *asked).stdout.splitlines()
    assert lines[-2:] == [REPLY, "[incomplete: the engine failed]"]
    report = json.loads(run("generate", poisoned, *asked, "--json").stdout)
    assert (report["finish_reason"], report["text"], report["malformed"]) == ("error", REPLY, False)
    assert len(report["ids"]) == report["usage"]["new_tokens"] > 0


@pytest.mark.usefixtures("own_cache")
def test_chat_and_bench_exit_with_code_6(poisoned: Path, infinite: Path) -> None:
    reply = run("chat", poisoned, "--temperature", 0, text=f"{HELLO}\n{HELLO}\n").stdout
    assert reply.count(REPLY) == 1
    assert run("bench", infinite, "--prompt-tokens", 4, "--new-tokens", 2, "--repeat", 1, "--json").stdout == ""
