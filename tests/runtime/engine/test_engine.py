"""The engine on the real onnxruntime-genai, with the nano artifact."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import numpy as np
import pytest

from gptoss_runtime import (
    BackendError,
    BackendUnavailable,
    ContextOverflow,
    Engine,
    FinishReason,
    GenerationOptions,
    InvalidRequest,
    ResourceError,
    load_engine,
)
from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.engine.genai import GenaiEngine, _Sequence, import_genai
from gptoss_runtime.engine.genai_errors import convert_errors
from gptoss_runtime.engine.genai_providers import configure_provider, suggest_alternative
from gptoss_runtime.harmony_tokens import VOCAB_SIZE

GREEDY = GenerationOptions(temperature=0, max_new_tokens=8, stop_token_ids=())
PROMPT = [int(token) for token in np.random.default_rng(0).integers(0, 199998, 300)]


@pytest.fixture
def fresh(nano_artifact: Path) -> GenaiEngine:
    return GenaiEngine(Artifact.open(nano_artifact), threads=1)


def run(engine: Engine, prompt: list[int], options: GenerationOptions = GREEDY) -> list[int]:
    return list(engine.generate(prompt, options))


def test_prefix_reuse_changes_no_token(engine: Engine, fresh: GenaiEngine) -> None:
    first = run(engine, PROMPT)
    longer = [*PROMPT, *first, 5, 6, 7]
    generation = engine.generate(longer, GREEDY)
    tokens = list(generation)
    assert generation.result.usage.cached_tokens >= len(PROMPT)
    shorter = run(engine, PROMPT[:100])
    again = engine.generate(PROMPT[:100], GREEDY)
    assert list(again) == shorter
    assert again.result.usage.cached_tokens == 99
    unrelated = engine.generate([9, *PROMPT], GREEDY)
    next(unrelated)
    unrelated.close()
    assert unrelated.result.usage.cached_tokens == 0
    assert tokens == run(fresh, longer)
    fresh._slots.clear()
    assert shorter == run(fresh, PROMPT[:100])


def test_a_cache_that_cannot_rewind_is_recomputed(
    engine: Engine, fresh: GenaiEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(fresh, PROMPT)
    monkeypatch.setattr("gptoss_runtime.engine.genai._Sequence.rewind", lambda *_: False)
    generation = fresh.generate(PROMPT[:50], GREEDY)
    assert list(generation) == run(engine, PROMPT[:50])
    assert generation.result.usage.cached_tokens == 0


def test_devices_without_append_give_the_same_tokens(engine: Engine, fresh: GenaiEngine) -> None:
    fresh._can_append = False  # like DirectML
    sampled = GenerationOptions(seed=1, max_new_tokens=8, stop_token_ids=())
    for options in (GREEDY, sampled):
        assert run(fresh, PROMPT, options) == run(engine, PROMPT, options)


def test_interleaved_generations_do_not_mix(engine: Engine) -> None:
    alone = [run(engine, PROMPT[:40]), run(engine, PROMPT[40:90])]
    one, two = engine.generate(PROMPT[:40], GREEDY), engine.generate(PROMPT[40:90], GREEDY)
    pairs = list(zip(one, two, strict=True))
    assert [list(tokens) for tokens in zip(*pairs, strict=True)] == alone


def test_threads_can_share_an_engine(engine: Engine) -> None:
    prompts = [PROMPT[at : at + 20] for at in range(0, 80, 20)]
    expected = [run(engine, prompt) for prompt in prompts]
    found: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda at=at: found.update({at: run(engine, prompts[at])})) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(4)] == expected


def test_a_sequence_outgrows_its_initial_capacity(fresh: GenaiEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(fresh, PROMPT, GenerationOptions(temperature=0, max_new_tokens=40, stop_token_ids=()))
    fresh._slots.clear()
    monkeypatch.setattr("gptoss_runtime.engine.genai._INITIAL_CAPACITY", 16)
    monkeypatch.setattr("gptoss_runtime.engine.genai._ANSWER_CAPACITY", 4)
    fresh_prompt = PROMPT[:10]
    short = run(fresh, fresh_prompt, GenerationOptions(temperature=0, max_new_tokens=40, stop_token_ids=()))
    assert len(short) == 40
    assert run(fresh, PROMPT, GenerationOptions(temperature=0, max_new_tokens=40, stop_token_ids=())) == expected


def test_the_last_position_of_a_cache_stays_empty(fresh: GenaiEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a static cache it belongs to the sink: a token there is not attended to, and its logits are wrong."""
    monkeypatch.setattr("gptoss_runtime.engine.genai._INITIAL_CAPACITY", 16)
    monkeypatch.setattr("gptoss_runtime.engine.genai._ANSWER_CAPACITY", 4)
    append, filled = _Sequence.append, list[tuple[int, int]]()

    def record(self: _Sequence, tokens: list[int]) -> None:
        append(self, tokens)
        filled.append((len(self.tokens), self.capacity))

    monkeypatch.setattr(_Sequence, "append", record)
    run(fresh, PROMPT[:10], GenerationOptions(temperature=0, max_new_tokens=40, stop_token_ids=()))
    run(fresh, PROMPT[:31], GREEDY)
    for length in (15, 16, 17, 32):
        list(fresh.iter_logits(PROMPT[:length], steps=2))
    assert {capacity for _, capacity in filled} >= {16, 32, 64}
    assert all(length < capacity for length, capacity in filled)
    fresh._can_append = False  # with a static cache, logits have one position less, too
    with pytest.raises(ContextOverflow):
        fresh.logits(PROMPT[:1] * fresh.info.context_length)


def test_iter_logits_equals_logits(engine: Engine) -> None:
    ends, rows = zip(*engine.iter_logits(PROMPT[:140], steps=3), strict=True)
    assert ends == (128, 137, 138, 139, 140)
    whole = engine.logits(PROMPT[:140], stepwise=True)
    most = 5e-3 * float(abs(whole).max())
    for end, row in zip(ends, rows, strict=True):
        np.testing.assert_allclose(row[-1], whole[end - 1], rtol=0, atol=most)


def test_the_same_seed_gives_the_same_tokens(engine: Engine) -> None:
    options = GenerationOptions(seed=3, max_new_tokens=8, stop_token_ids=())
    assert run(engine, PROMPT[:30], options) == run(engine, PROMPT[:30], options)


def test_logits_of_prefill_and_of_steps_agree(engine: Engine) -> None:
    whole, steps = engine.logits(PROMPT[:24]), engine.logits(PROMPT[:24], stepwise=True)
    assert whole.shape == steps.shape == (24, engine.info.vocab_size)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, steps, rtol=0, atol=5e-3 * float(abs(whole).max()))
    assert int(whole[-1].argmax()) == run(engine, PROMPT[:24])[0]


def test_iter_logits_yields_every_chunk_and_step(engine: GenaiEngine) -> None:
    """This artifact returns only the last logits of each chunk."""
    whole, stepped = list(engine.iter_logits(PROMPT)), list(engine.iter_logits(PROMPT, steps=20))
    assert [end for end, _ in whole] == [128, 256, 300]
    assert [end for end, _ in stepped] == [128, 256, 280, *range(281, 301)]
    assert {rows.shape for _, rows in (*whole, *stepped)} == {(1, engine.info.vocab_size)}
    most = 5e-3 * float(abs(whole[-1][1]).max())
    np.testing.assert_allclose(whole[-1][1], stepped[-1][1], rtol=0, atol=most)
    np.testing.assert_allclose(whole[0][1][0], engine.logits(PROMPT[:128])[-1], rtol=0, atol=most)
    assert [end for end, _ in engine.iter_logits(PROMPT[:3], steps=3)] == [1, 2, 3]


def test_cancel_during_prefill_leaves_a_usable_engine(engine: Engine, fresh: GenaiEngine) -> None:
    expected = run(engine, PROMPT)
    fresh._chunk = 16
    generation = fresh.generate(PROMPT, GREEDY)
    assert len(fresh._slots) == 0
    calls = []

    def cancelled() -> bool:
        calls.append(1)
        return len(calls) > 3

    generation._cancel.is_set = cancelled  # type: ignore[method-assign]  # cancels between two prompt chunks
    assert list(generation) == []
    assert generation.result.finish_reason is FinishReason.CANCELLED
    again = fresh.generate(PROMPT, GREEDY)
    assert list(again) == expected
    assert again.result.usage.cached_tokens > 0


def test_cancel_from_another_thread(engine: Engine) -> None:
    generation = engine.generate(PROMPT[:10], GenerationOptions(stop_token_ids=()))
    thread = threading.Timer(0.1, generation.cancel)
    thread.start()
    tokens = list(generation)
    thread.join()
    assert generation.result.finish_reason is FinishReason.CANCELLED
    assert len(tokens) < engine.info.context_length - 10


def test_bad_requests_leave_a_usable_engine(engine: Engine) -> None:
    expected = run(engine, PROMPT[:10])
    with pytest.raises(InvalidRequest):
        engine.generate([engine.info.vocab_size])
    with pytest.raises(ContextOverflow):
        engine.generate([1] * engine.info.context_length)
    with pytest.raises(InvalidRequest):
        engine.logits([])
    assert run(engine, PROMPT[:10]) == expected


def test_context_length_can_be_reduced(nano_artifact: Path) -> None:
    with load_engine(nano_artifact, context_length=20, threads=1) as engine:
        generation = engine.generate(PROMPT[:15], GenerationOptions(stop_token_ids=()))
        assert len(list(generation)) == 5
        assert generation.result.finish_reason is FinishReason.LENGTH
        with pytest.raises(ContextOverflow):
            engine.generate(PROMPT[:20])


def test_a_closed_engine_raises(nano_artifact: Path) -> None:
    with load_engine(nano_artifact, threads=1) as engine:
        pass
    with pytest.raises(BackendError, match="closed"):
        run(engine, PROMPT[:3])
    with pytest.raises(BackendError, match="closed"):
        engine.logits([1])


@pytest.mark.parametrize(
    "options", [{"device": -1}, {"threads": 0}, {"threads": 1.5}, {"context_length": 1}, {"context_length": True}]
)
def test_bad_load_options(nano_artifact: Path, options: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        load_engine(nano_artifact, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("cpu", ["clear_providers", "overlay 3"]),
        ("directml", ["clear_providers", "append_provider dml", "set_provider_option dml device_index 1", "overlay 3"]),
        ("CUDA", ["clear_providers", "append_provider cuda", "set_provider_option cuda device_id 1", "overlay 3"]),
    ],
)
def test_the_requested_provider_replaces_the_configured_one(provider: str, expected: list[str]) -> None:
    calls: list[str] = []

    class Config:
        def overlay(self, text: str) -> None:
            threads = json.loads(text)["model"]["decoder"]["session_options"]["intra_op_num_threads"]
            calls.append(f"overlay {threads}")

        def __getattr__(self, name: str) -> object:
            return lambda *arguments: calls.append(" ".join((name, *arguments)))

    configure_provider(
        cast(ModuleType, SimpleNamespace()),
        Config(),
        made_for="cpu",
        provider=provider,
        device=1,
        threads=3,
        vocab_size=201088,
    )
    assert calls == expected


def test_a_provider_that_cannot_run_the_artifact_is_rejected(nano_artifact: Path) -> None:
    """It is checked before loading: for DirectML on the CPU, genai would report a missing kernel."""
    artifact = Artifact.open(nano_artifact)
    for target, provider, message in (
        ("directml", "CPU", "cache of fixed size"),
        ("cuda", "directml", "laid out for cuda, which directml cannot read"),
    ):
        with pytest.raises(InvalidRequest, match=message) as caught:
            GenaiEngine(replace(artifact, target=target), provider=provider)
        assert f"--provider {target}" in str(caught.value.remedy)


@pytest.mark.skipif(import_genai().is_dml_available(), reason="this build has DirectML")
def test_a_missing_provider(nano_artifact: Path) -> None:
    where = r"needs Windows" if sys.platform != "win32" else r"gptoss-windows\[directml\]"
    with pytest.raises(BackendUnavailable, match=where):
        load_engine(nano_artifact, provider="directml")
    with pytest.raises(BackendUnavailable, match=r"gptoss-windows\[cuda\]"):
        load_engine(nano_artifact, provider="cuda")
    with pytest.raises(BackendUnavailable, match="nonsense"):
        load_engine(nano_artifact, provider="nonsense")


def test_a_missing_package_suggests_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    with pytest.raises(BackendUnavailable) as caught:
        import_genai()
    assert "gptoss-windows[cpu]" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (MemoryError(), ResourceError),
        (RuntimeError("Could not allocate the key-value cache buffer of shape: …"), ResourceError),
        (RuntimeError("std::bad_alloc"), ResourceError),
        (RuntimeError("Unknown provider name 'x'"), BackendUnavailable),
        (RuntimeError("Cuda interface not available: Failed to load library: libcublas…"), BackendUnavailable),
        (RuntimeError(""), BackendError),
        (ValueError("odd"), BackendError),
    ],
)
def test_native_errors_are_converted(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, convert_errors("testing", remedy="Try again."):
        raise raised
    assert type(caught.value) is expected
    assert "testing" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "provider", "suggested"),
    [("directml", "directml", False), ("cuda", "cuda", False), ("cpu", "cuda", True)],
)
def test_the_remedy_suggests_the_cpu_only_if_it_can_run_the_artifact(
    target: str, provider: str, suggested: bool, nano_artifact: Path
) -> None:
    artifact = replace(Artifact.open(nano_artifact), target=target)
    suggestion = suggest_alternative(target, provider)
    assert ("Try --provider cpu" in suggestion) == suggested
    assert ("converted with --target cpu" in suggestion) != suggested
    if suggested:
        GenaiEngine(artifact, provider="cpu", threads=1).close()
    else:
        with pytest.raises(InvalidRequest):
            GenaiEngine(artifact, provider="cpu")
    missing = SimpleNamespace(is_dml_available=lambda: False, is_cuda_available=lambda: False)
    config = SimpleNamespace(clear_providers=lambda: None)
    with pytest.raises(BackendUnavailable) as caught:
        configure_provider(
            cast(ModuleType, missing),
            config,
            made_for=target,
            provider=provider,
            device=None,
            threads=None,
            vocab_size=VOCAB_SIZE,
        )
    assert str(caught.value.remedy).endswith(suggestion)


@pytest.mark.parametrize("target", ["cpu", "directml"])
def test_a_native_error_suggests_no_provider_that_cannot_help(
    target: str, nano_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("odd")

    monkeypatch.setattr("gptoss_runtime.engine.genai.load_model", fail)
    artifact = replace(Artifact.open(nano_artifact), target=target)
    with pytest.raises(BackendError, match="odd") as caught:
        GenaiEngine(artifact, provider="cpu" if target == "cpu" else "webgpu", threads=1)
    remedy = str(caught.value.remedy)
    assert "--provider cpu" not in remedy
    assert "gptoss inspect" in remedy
    assert ("--target cpu" in remedy) == (target == "directml")
