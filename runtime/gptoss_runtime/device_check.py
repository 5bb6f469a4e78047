"""Checks whether a device computes a model correctly: compares an engine's logits with an artifact's reference logits.

The prompt is read in both ways that a conversation reads it: prefixes of it as prompts, each into an empty KV cache,
and its last tokens one by one through the cache. Knows engines and references; knows nothing of files, adapters and
terminals.

Two distances are computed per position, both in nats: the shift, by which the logits of the most likely tokens moved,
and the KL divergence. Measured on nano at all 512 positions of the check prompt, against the CPU; "of eight" is the
range of the medians of eight neighbouring positions, the last column the share of positions with a larger KL:

                                                shift: median    99 %   of eight       KL: median   above 0.1
    rounding: float16 on DirectML (software GPU)          0.022    1.3   0.008-0.08         5e-5       2.3 %
              float16 in transformers                     0.010    0.5   0.005-0.03         1e-5       1.0 %
              bfloat16 in transformers                    0.11     1.7   0.04-0.36          1e-3       7.4 %
    faults:   a norm's weight times 1.5                   1.2      3.0   0.6-2.4
              no sinks in attention                       2.7      5.3   1.5-4.3
              one expert instead of four                  2.2      4.0   1.3-3.3

Rounding hardly moves most positions and moves a few far: where a router's choice is near a tie, it selects another
expert. One such position would dominate a mean over a dozen, so the check judges the median and tolerates some far
positions. KL measures what a user would notice, but is near zero where the model is certain, which is half of what it
generates; so the median judged is that of the shifts.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptoss_runtime.artifact.reference_logits import ReferenceLogits, TopLogits
from gptoss_runtime.engine.base import Engine
from gptoss_runtime.errors import ArtifactError, InvalidRequest

# Maximum median shift, for prompts and for steps separately. float16: four times the largest measured over eight
# positions, because real models have six to nine times nano's layers and GPUs may accumulate in float16; half of the
# smallest fault. float32 gets the same, because kernels may compute in less (TF32, 8-bit activations). bfloat16 has
# three bits less.
MAX_MEDIAN_SHIFT = {"float16": 0.3, "float32": 0.3, "bfloat16": 0.6}
FAR_KL = 0.1  # nats; rounding exceeds this only where the router selects another expert
CLEAR_MARGIN = 1.0  # nats; rounding does not change a top token that leads by more (measured: 1.15, once in 512)
_MAX_FAR_SHARE = 0.25  # of the prompts' positions, and of the steps'
_RANDOM_PROMPT_TOKENS = 512  # the prompt's length if there is no reference

Progress = Callable[[int, int], None]


class Outcome(StrEnum):
    """The outcome of a check."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"  # there is no reference


@dataclass(frozen=True, slots=True)
class PositionCheck:
    """The check of one position.

    Attributes:
        position: index of the token that the logits follow.
        phase: "prefill" for the end of a prompt, "decode" for a step through the cache.
        finite: whether all logits are finite.
        shift: distance of the most likely tokens' logits from the reference's, in nats; None if there is no reference
            or logits are not finite.
        divergence: KL divergence from the reference, in nats; None in the same cases.
        expected: the reference's most likely token.
        found: the device's most likely token.
        margin: the lead of the reference's most likely token over the second, in nats.
        far: whether rounding does not explain the distance, or only by another choice of experts.
    """

    position: int
    phase: Literal["prefill", "decode"]
    finite: bool
    shift: float | None = None
    divergence: float | None = None
    expected: int | None = None
    found: int | None = None
    margin: float | None = None
    far: bool = False


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """The result of a check.

    Attributes:
        outcome: whether the device computes the model correctly.
        problems: what is wrong, one sentence each.
        positions: the positions compared, ascending.
        repeats: whether the first prompt gave bitwise equal logits a second time.
        prompt_tokens: number of tokens read as prompts, the repeated prompt included.
        prefill_seconds: the time they took.
        steps: number of tokens fed one by one.
        decode_seconds: the time they took.
    """

    outcome: Outcome
    problems: tuple[str, ...]
    positions: tuple[PositionCheck, ...]
    repeats: bool
    prompt_tokens: int
    prefill_seconds: float
    steps: int
    decode_seconds: float

    @property
    def divergences(self) -> list[float]:
        """The known KL divergences, in nats."""
        return [one.divergence for one in self.positions if one.divergence is not None]

    @property
    def shifts(self) -> list[float]:
        """The known shifts, in nats."""
        return [one.shift for one in self.positions if one.shift is not None]

    @property
    def same_top(self) -> int:
        """Number of positions whose most likely token is the reference's."""
        return sum(one.found is not None and one.found == one.expected for one in self.positions)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; no number is infinite or NaN."""
        found = self.divergences
        summary = {
            "median_shift": statistics.median(self.shifts) if found else None,
            "median_kl": statistics.median(found) if found else None,
            "mean_kl": statistics.fmean(found) if found else None,
            "max_kl": max(found, default=None),
            "same_top": self.same_top,
        }
        return asdict(self) | {"outcome": self.outcome.value} | summary


@dataclass
class _Run:
    """The device's logits by position, with token counts and times."""

    engine: Engine
    progress: Progress
    total: int
    rows: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    phases: dict[int, Literal["prefill", "decode"]] = field(default_factory=dict)
    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    steps: int = 0
    decode_seconds: float = 0.0

    def feed(self, tokens: Sequence[int], *, steps: int = 0) -> None:
        """Feeds a sequence; stores the logits after its prompt and after every step."""
        prompt, fed, before = len(tokens) - steps, self.prompt_tokens + self.steps, 0
        started = time.perf_counter()
        for end, rows in self.engine.iter_logits(tokens, steps=steps):
            seconds = time.perf_counter() - started
            if end <= prompt:
                self.prompt_tokens += end - before
                self.prefill_seconds += seconds
            else:
                self.steps += end - before
                self.decode_seconds += seconds
            if end >= prompt:
                self.rows[end - 1] = rows[-1].copy()
                self.phases[end - 1] = "prefill" if end == prompt else "decode"
            self.progress(fed + end, self.total)
            before, started = end, time.perf_counter()


def check_device(
    engine: Engine,
    reference: ReferenceLogits | None,
    *,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    progress: Progress | None = None,
) -> DeviceReport:
    """Runs the reference's prompt on a device and compares the logits.

    Args:
        engine: the model on the device.
        reference: the logits to compare with; None checks only that logits are finite and repeatable.
        dtype: the artifact's type of matrix products and attention.
        progress: called with the number of tokens fed and their total.

    Raises:
        InvalidRequest: the engine's context is too short for the prompt.
        ArtifactError: the reference belongs to another model.
        GptOssError: what the engine raises.
    """
    tokens = _random_prompt(engine) if reference is None else reference.token_ids
    expected = {} if reference is None else {one.position: one for one in reference.positions}
    _check_fits(engine, tokens, expected)
    where = sorted(expected) or _default_positions(len(tokens))
    prompts, steps = _plan_runs(where)
    total = sum(prompts) + steps + prompts[0]
    run = _Run(engine, progress or (lambda done, total: None), total)
    for length in prompts[:-1]:
        run.feed(tokens[:length])
    run.feed(tokens[: prompts[-1] + steps], steps=steps)
    first = run.rows[prompts[0] - 1]
    run.feed(tokens[: prompts[0]])
    repeats = np.array_equal(first, run.rows[prompts[0] - 1], equal_nan=True)
    checks = tuple(_compare_position(run, position, expected.get(position)) for position in where)
    problems = tuple(_find_problems(checks, repeats, MAX_MEDIAN_SHIFT[dtype]))
    outcome = Outcome.RIGHT if reference else Outcome.UNKNOWN
    return DeviceReport(
        outcome=Outcome.WRONG if problems else outcome,
        problems=problems,
        positions=checks,
        repeats=repeats,
        prompt_tokens=run.prompt_tokens,
        prefill_seconds=run.prefill_seconds,
        steps=run.steps,
        decode_seconds=run.decode_seconds,
    )


def _plan_runs(where: Sequence[int]) -> tuple[list[int], int]:
    """Lengths of the prompts that end at a position, and the steps after the last: the consecutive last positions."""
    first = len(where) - 1
    while first > 0 and where[first - 1] == where[first] - 1:
        first -= 1
    return [position + 1 for position in where[: first + 1]], len(where) - 1 - first


def _random_prompt(engine: Engine) -> list[int]:
    """Random ids, the same ones every time."""
    rng, info = random.Random("device check"), engine.info
    return [rng.randrange(info.vocab_size) for _ in range(min(_RANDOM_PROMPT_TOKENS, info.context_length - 1))]


def _default_positions(length: int) -> list[int]:
    ends = {length // 4, length // 2, *range(max(1, length - 8), length + 1)}
    return sorted(end - 1 for end in ends if end > 0)


def _check_fits(engine: Engine, tokens: Sequence[int], expected: dict[int, TopLogits]) -> None:
    info = engine.info
    largest = max(*tokens, *(token for one in expected.values() for token in one.token_ids), 0)
    if largest >= info.vocab_size:
        raise ArtifactError(
            f"the reference logits of {info.name} name token {largest:,}; its vocabulary has {info.vocab_size:,} ids",
            remedy="Convert the checkpoint again, or copy the whole folder again.",
        )
    if len(tokens) >= info.context_length:
        raise InvalidRequest(
            f"the check needs a context of {len(tokens) + 1:,} tokens; this one holds {info.context_length:,}",
            remedy=f"Set context_length (--context-length) to {len(tokens) + 1:,} or more, or leave it out.",
        )


def _compare_position(run: _Run, position: int, expected: TopLogits | None) -> PositionCheck:
    logits, phase = run.rows[position], run.phases[position]
    if not np.isfinite(logits).all():
        return PositionCheck(position, phase, finite=False, far=True)
    found = int(logits.argmax())
    if expected is None:
        return PositionCheck(position, phase, finite=True, found=found)
    divergence, margin, top = expected.divergence(logits), expected.margin, expected.token_ids[0]
    return PositionCheck(
        position,
        phase,
        finite=True,
        shift=expected.shift(logits),
        divergence=divergence,
        expected=top,
        found=found,
        margin=min(margin, 1e9),
        far=divergence > FAR_KL or (found != top and margin > CLEAR_MARGIN),
    )


def _find_problems(checks: Sequence[PositionCheck], repeats: bool, max_median: float) -> Iterator[str]:
    """Yields a sentence for each problem, the worst first."""
    not_finite = [one for one in checks if not one.finite]
    if not_finite:
        first = not_finite[0]
        yield (
            f"logits are not finite at {len(not_finite)} of {len(checks)} positions, first at {first.position} "
            f"({first.phase}): a value overflowed"
        )
    for phase, name in (("prefill", "prompts"), ("decode", "tokens fed one by one")):
        phase_checks = [one for one in checks if one.phase == phase and one.finite]
        shifts = [one.shift for one in phase_checks if one.shift is not None]
        if not shifts:
            continue
        median, far = statistics.median(shifts), sum(one.far for one in phase_checks)
        if median > max_median:
            yield f"{name}: the median logit shift is {median:.2g} nats; rounding explains {max_median:g}"
        elif far > max(1, _MAX_FAR_SHARE * len(phase_checks)):
            yield f"{name}: {far} of {len(phase_checks)} positions are far off"
    if not repeats:
        yield (
            "the same prompt gave different logits the second time: the device's memory or clock is unstable, or its "
            "driver's kernels are not deterministic"
        )
