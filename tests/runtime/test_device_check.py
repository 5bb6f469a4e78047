"""The device check, on simulated devices with various faults."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_runtime.artifact.folder import check_contents
from gptoss_runtime.artifact.reference_logits import MAX_POSITIONS, REFERENCE_LOGITS, ReferenceLogits, TopLogits
from gptoss_runtime.device_check import Outcome, PositionCheck, check_device
from gptoss_runtime.engine.base import Engine
from gptoss_runtime.engine.scripted import ScriptedEngine
from gptoss_runtime.errors import ArtifactError, InvalidRequest

VOCABULARY = 1000
PROMPT = [(7 * i) % VOCABULARY for i in range(512)]
POSITIONS = [31, 127, 255, *range(503, 512)]
Logits = NDArray[np.float32]
Perturb = Callable[[Logits, int, str, int], None]  # logits, position, phase, which sequence


def logits_after(tokens: tuple[int, ...]) -> Logits:
    """The simulated model: random logits that depend on all tokens, with a clear most likely token."""
    rng = np.random.default_rng(abs(hash(tokens)))
    logits = rng.standard_normal(VOCABULARY).astype(np.float32)
    best = rng.choice(VOCABULARY, 2, replace=False)
    logits[best] = 9.0, 7.5
    return logits


class Device(ScriptedEngine):
    """Computes the model and perturbs the logits; ``read`` lists (tokens, steps) of each sequence fed."""

    def __init__(self, perturb: Perturb | None = None, **settings: Any) -> None:
        super().__init__([], vocab_size=VOCABULARY, **settings)
        self.read: list[tuple[int, int]] = []
        self._perturb = perturb or (lambda *_: None)

    def iter_logits(self, token_ids: Iterable[int], *, steps: int = 0) -> Iterator[tuple[int, Logits]]:
        tokens = list(token_ids)
        prompt = len(tokens) - steps
        self.read.append((len(tokens), steps))
        for end in [*range(128, prompt, 128), *range(prompt, len(tokens) + 1)]:
            logits = logits_after(tuple(tokens[:end]))
            self._perturb(logits, end - 1, "decode" if end > prompt else "prefill", len(self.read) - 1)
            yield end, logits[None]


@pytest.fixture(scope="module")
def reference() -> ReferenceLogits:
    top = [TopLogits.from_logits(at, logits_after(tuple(PROMPT[: at + 1]))) for at in POSITIONS]
    return ReferenceLogits(source="cpu", token_ids=PROMPT, positions=top)


def noise(size: float, where: Callable[[int, str], bool] = lambda *_: True) -> Perturb:
    rng = np.random.default_rng(0)
    drawn: dict[int, Logits] = {}

    def perturb(logits: Logits, position: int, phase: str, _: int) -> None:
        if where(position, phase):  # the same each time: the device is wrong but deterministic
            drawn.setdefault(position, rng.standard_normal(VOCABULARY).astype(np.float32))
            logits += np.float32(size) * drawn[position]

    return perturb


def value(number: float, at: int) -> Perturb:
    def perturb(logits: Logits, position: int, *_: object) -> None:
        if position == at:
            logits[17] = number

    return perturb


def second_time(logits: Logits, _: int, __: str, sequence: int) -> None:
    """Flips one bit of one logit in the repeated prompt."""
    if sequence == 4:
        logits[3:4].view(np.uint32)[0] ^= 1


def by_phase(checks: Iterable[PositionCheck], phase: str) -> list[int]:
    return [one.position for one in checks if one.phase == phase]


def test_a_correct_device(reference: ReferenceLogits) -> None:
    device, seen = Device(), list[tuple[int, int]]()
    report = check_device(device, reference, progress=lambda done, total: seen.append((done, total)))
    assert (report.outcome, report.problems, report.repeats) == (Outcome.RIGHT, (), True)
    assert device.read == [(32, 0), (128, 0), (256, 0), (512, 8), (32, 0)]
    assert by_phase(report.positions, "prefill") == [31, 127, 255, 503]
    assert by_phase(report.positions, "decode") == list(range(504, 512))
    assert max(report.divergences) < 1e-6
    assert report.same_top == 12
    assert (report.prompt_tokens, report.steps) == (32 + 128 + 256 + 504 + 32, 8)
    assert report.prefill_seconds > 0 < report.decode_seconds
    assert seen == sorted(seen)
    assert seen[-1] == (960, 960)


@pytest.mark.parametrize("size", [1e-3, 1e-2, 0.1])
def test_a_device_that_rounds_is_correct(reference: ReferenceLogits, size: float) -> None:
    report = check_device(Device(noise(size)), reference)
    assert report.outcome is Outcome.RIGHT
    assert min(report.divergences) > 0


FAULTS: dict[str, tuple[Perturb, str]] = {
    "everywhere": (noise(2.0), "prompts: the median logit shift is"),
    "another scale": (
        lambda logits, *_: logits.__imul__(np.float32(1.3)),
        "prompts: the median logit shift is",
    ),
    "zeros": (lambda logits, *_: logits.fill(0), "prompts: the median logit shift is"),
    "shuffled": (
        lambda logits, *_: logits.__setitem__(slice(None), logits[::-1].copy()),
        "prompts: the median logit shift is",
    ),
    "late positions": (noise(2.0, lambda at, _: at >= 503), "tokens fed one by one: the median logit shift is"),
    "long prompts": (
        noise(4.0, lambda at, phase: at >= 255 and phase == "prefill"),
        "prompts: the median logit shift is",
    ),
    "steps": (
        noise(2.0, lambda _, phase: phase == "decode"),
        "tokens fed one by one: the median logit shift is",
    ),
    "prompts": (noise(2.0, lambda _, phase: phase == "prefill"), "prompts: the median logit shift is"),
    "some steps": (noise(4.0, lambda at, _: at in (505, 508, 511)), "tokens fed one by one: 3 of 8 positions are far"),
    "one NaN": (value(np.nan, 509), "logits are not finite at 1 of 12 positions, first at 509 (decode)"),
    "one inf": (value(np.inf, 31), "logits are not finite at 1 of 12 positions, first at 31 (prefill)"),
    "all NaN": (lambda logits, *_: logits.fill(np.nan), "logits are not finite at 12 of 12 positions"),
    "not the same twice": (second_time, "the same prompt gave different logits the second time"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_device(reference: ReferenceLogits, fault: str) -> None:
    perturb, problem = FAULTS[fault]
    report = check_device(Device(perturb), reference)
    assert report.outcome is Outcome.WRONG
    assert any(one.startswith(problem) for one in report.problems), report.problems
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["outcome"] == "wrong"


def test_problems_name_the_faulty_phase(reference: ReferenceLogits) -> None:
    """Wrong steps are not reported for prompts, nor the reverse; equal NaNs count as repeatable."""
    for fault, blamed in (("steps", "tokens fed one by one"), ("prompts", "prompts"), ("all NaN", "logits are not")):
        [problem] = check_device(Device(FAULTS[fault][0]), reference).problems
        assert problem.startswith(blamed)


def test_a_few_far_positions_are_tolerated(reference: ReferenceLogits) -> None:
    report = check_device(Device(noise(4.0, lambda at, _: at in (127, 506))), reference)
    assert report.outcome is Outcome.RIGHT
    assert [one.position for one in report.positions if one.far] == [127, 506]


def test_bfloat16_tolerates_larger_shifts(reference: ReferenceLogits) -> None:
    """A shift that is a fault in float16 is rounding in bfloat16."""
    between = noise(0.4)
    assert check_device(Device(between), reference).outcome is Outcome.WRONG
    assert check_device(Device(between), reference, dtype="bfloat16").outcome is Outcome.RIGHT


def test_without_a_reference() -> None:
    device = Device()
    report = check_device(device, None)
    assert (report.outcome, report.problems, report.divergences) == (Outcome.UNKNOWN, (), [])
    assert {one.phase for one in report.positions} == {"prefill", "decode"}
    assert max(end for end, _ in device.read) == 512
    assert check_device(Device(value(np.nan, 511)), None).outcome is Outcome.WRONG
    assert check_device(Device(context_length=12), None).outcome is Outcome.UNKNOWN
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_short_reference() -> None:
    """The reference of a model with a tiny context: a prompt of one token, then steps."""
    top = [TopLogits.from_logits(at, logits_after(tuple(PROMPT[: at + 1]))) for at in range(4)]
    device = Device(context_length=5)
    report = check_device(device, ReferenceLogits(source="cpu", token_ids=PROMPT[:4], positions=top))
    assert (report.outcome, device.read) == (Outcome.RIGHT, [(4, 3), (1, 0)])


def test_the_default_iter_logits(reference: ReferenceLogits) -> None:
    """Engines that implement only ``logits``, such as ``ProcessEngine``, inherit ``Engine.iter_logits``."""

    class Plain(Device):
        iter_logits = Engine.iter_logits

        def logits(self, token_ids: Iterable[int], *, stepwise: bool = False) -> Logits:
            tokens = tuple(token_ids)
            return np.stack([logits_after(tokens[: end + 1]) for end in range(len(tokens))])

    assert check_device(Plain(), reference).outcome is Outcome.RIGHT


def test_a_context_that_is_too_short(reference: ReferenceLogits) -> None:
    with pytest.raises(InvalidRequest, match="needs a context of 513 tokens; this one holds 512") as raised:
        check_device(Device(context_length=512), reference)
    assert "--context-length" in (raised.value.remedy or "")


def test_a_reference_of_another_model(reference: ReferenceLogits) -> None:
    other = reference.model_copy(update={"token_ids": [*PROMPT[:-1], VOCABULARY]})
    with pytest.raises(ArtifactError, match="name token 1,000"):
        check_device(Device(), other)


def _changed(reference: ReferenceLogits, **changes: Any) -> bytes:
    return json.dumps(json.loads(reference.to_bytes()) | changes).encode()


def _first(reference: ReferenceLogits, **changes: Any) -> bytes:
    positions = json.loads(reference.to_bytes())["positions"]
    return _changed(reference, positions=[positions[0] | changes, *positions[1:]])


BAD: dict[str, Callable[[ReferenceLogits], bytes]] = {
    "no JSON": lambda _: b"{",
    "twice": lambda r: r.to_bytes().replace(b'"source": "cpu"', b'"source": "cpu", "source": "cpu"'),
    "NaN": lambda r: r.to_bytes().replace(b'"log_sum_exp":', b'"log_sum_exp":NaN,"x":', 1),
    "huge": lambda r: r.to_bytes() + b" " * (1 << 20),
    "newer": lambda r: _changed(r, schema_version=2),
    "empty": lambda r: _changed(r, token_ids=[]),
    "negative": lambda r: _changed(r, token_ids=[-1] * 512),
    "no positions": lambda r: _changed(r, positions=[]),
    "beyond the prompt": lambda r: _changed(r, token_ids=PROMPT[:511]),
    "descending": lambda r: _changed(r, positions=json.loads(r.to_bytes())["positions"][::-1]),
    "too many": lambda r: _changed(
        r, positions=[json.loads(r.to_bytes())["positions"][0] | {"position": at} for at in range(MAX_POSITIONS + 1)]
    ),
    "unequal": lambda r: _first(r, logits=[1.0]),
    "the same token": lambda r: _first(r, token_ids=[5] * 32),
    "ascending logits": lambda r: _first(r, logits=[*range(32)]),
    "exceed log_sum_exp": lambda r: _first(r, log_sum_exp=-1e9),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file(reference: ReferenceLogits, kind: str, tmp_path: Path) -> None:
    """It is rejected when it is read and when the whole folder is checked."""
    (tmp_path / REFERENCE_LOGITS).write_bytes(reference.to_bytes())
    assert ReferenceLogits.read(tmp_path) == reference
    check_contents(tmp_path)
    (tmp_path / REFERENCE_LOGITS).write_bytes(BAD[kind](reference))
    for read in (ReferenceLogits.read, check_contents):
        with pytest.raises(ArtifactError, match=REFERENCE_LOGITS):
            read(tmp_path)


def test_divergence_of_extremes() -> None:
    """It causes no warning, and no number that JSON cannot represent."""
    sure = np.full(VOCABULARY, -1e4, np.float32)
    sure[5] = 1e4
    top = TopLogits.from_logits(0, sure)
    assert top.divergence(sure) < 1e-9
    assert 100 < top.divergence(sure[::-1].copy()) < 1e4
    assert np.isfinite(top.divergence(np.full(VOCABULARY, 3e38, np.float32)))
