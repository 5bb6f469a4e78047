"""Does this device compute this model right? Compares an engine's logits with an artifact's reference logits.

The prompt is read the two ways that a conversation reads it: beginnings of it as prompts, each into an empty cache, and
its last tokens one by one through the cache. Knows engines and the reference; knows nothing of files, adapters and
terminals.

Two distances count, both in nats: how far the logits of the likeliest tokens moved, and the KL divergence. Measured on
nano at all 512 positions of the check prompt, against the CPU; on the right the smallest and the largest median of
eight neighbours:

                                                 logits: median   99 %   of eight       KL: median   above 0.1
    rounding: float16 on DirectML (software GPU)          0.022    1.3   0.008-0.08         5e-5       2.3 %
              float16 in transformers                     0.010    0.5   0.005-0.03         1e-5       1.0 %
              bfloat16 in transformers                    0.11     1.7   0.04-0.36          1e-3       7.4 %
    faults:   a norm's weight times 1.5                   1.2      3.0   0.6-2.4
              no sinks in attention                       2.7      5.3   1.5-4.3
              one expert in place of four                 2.2      4.0   1.3-3.3

Rounding moves most positions hardly and a few far: there a router's choice of experts is near a tie, and another expert
answers. One of those decides a mean over a dozen positions; so the median is judged, and some positions may be far off.
The KL says what a user would notice, but nothing where the model is sure, as it is in half of what it generates; so the
median is the logits'.
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

# Largest median of the logits' distances, of prompts and of steps alone. float16: four times what eight positions ever
# had, since real models have six to nine times nano's layers and GPUs may add up in float16; half of the least fault.
# float32 as float16, since what runs it may compute in less (TF32, 8-bit activations). bfloat16 has three bits less.
TYPICAL = {"float16": 0.3, "float32": 0.3, "bfloat16": 0.6}
FAR = 0.1  # KL of a position that rounding explains only by another choice of experts
DECIDED = 1.0  # lead of the reference's top token above which rounding gives no other (measured: 1.15, in one of 512)
_FAR_SHARE = 0.25  # of the prompts, and of the steps: how many may be far off
_BLIND_TOKENS = 512  # of the prompt where there is no reference

Progress = Callable[[int, int], None]


class Outcome(StrEnum):
    """What a check came to."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"  # nothing to compare with


@dataclass(frozen=True, slots=True)
class PositionCheck:
    """One position.

    Attributes:
        position: index of the token that the logits follow.
        phase: "prefill" at the end of a prompt, "decode" after a step through the cache.
        finite: whether all logits are.
        shift: how far the likeliest tokens' logits are from the reference's, nats; None without a reference or where
            logits are not finite.
        divergence: KL from the reference, nats; None likewise.
        expected: the reference's most likely token.
        found: the device's.
        margin: by how much the reference's leads, nats.
        far: whether rounding does not explain it, or only by another choice of experts.
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
    """What was found.

    Attributes:
        outcome: whether the device computes the model right.
        problems: why not, a sentence each.
        positions: every position, ascending.
        repeats: whether the first prompt gave the same logits a second time, bit for bit.
        prompt_tokens: read as prompts, the repetition included, in ``prefill_seconds``.
        steps: tokens fed one by one, in ``decode_seconds``.
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
        """Those that are known, nats."""
        return [one.divergence for one in self.positions if one.divergence is not None]

    @property
    def shifts(self) -> list[float]:
        """Those that are known, nats."""
        return [one.shift for one in self.positions if one.shift is not None]

    @property
    def same_top(self) -> int:
        """Positions with the reference's most likely token."""
        return sum(one.found is not None and one.found == one.expected for one in self.positions)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: no number in it is infinite or NaN."""
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
    """The device's logits by position, and what they took."""

    engine: Engine
    progress: Progress
    total: int
    rows: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    phases: dict[int, Literal["prefill", "decode"]] = field(default_factory=dict)
    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    steps: int = 0
    decode_seconds: float = 0.0

    def read(self, tokens: Sequence[int], *, steps: int = 0) -> None:
        """Feeds a sequence; keeps the logits after its prompt and after every step."""
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
    """Runs the reference's prompt, and compares.

    Args:
        engine: the model on the device.
        reference: what to compare with; None: only whether logits are finite and repeat is found out.
        dtype: of the artifact's matrix products and attention.
        progress: called with (tokens fed, tokens in all).

    Raises:
        InvalidRequest: the engine's context is shorter than the prompt.
        ArtifactError: the reference is another model's.
        GptOssError: what the engine raises.
    """
    tokens = _blind_prompt(engine) if reference is None else reference.token_ids
    expected = {} if reference is None else {one.position: one for one in reference.positions}
    _require_fitting(engine, tokens, expected)
    where = sorted(expected) or _blind_positions(len(tokens))
    prompts, steps = _plan(where)
    total = sum(prompts) + steps + prompts[0]
    run = _Run(engine, progress or (lambda done, total: None), total)
    for length in prompts[:-1]:
        run.read(tokens[:length])
    run.read(tokens[: prompts[-1] + steps], steps=steps)
    first = run.rows[prompts[0] - 1]
    run.read(tokens[: prompts[0]])
    repeats = np.array_equal(first, run.rows[prompts[0] - 1], equal_nan=True)
    checks = tuple(_check(run, position, expected.get(position)) for position in where)
    problems = tuple(_problems(checks, repeats, TYPICAL[dtype]))
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


def _plan(where: Sequence[int]) -> tuple[list[int], int]:
    """Lengths of prompts that end at positions, and how many steps follow the last: the consecutive positions."""
    first = len(where) - 1
    while first > 0 and where[first - 1] == where[first] - 1:
        first -= 1
    return [position + 1 for position in where[: first + 1]], len(where) - 1 - first


def _blind_prompt(engine: Engine) -> list[int]:
    """Random ids, where no prompt is known: the same ones every time."""
    rng, info = random.Random("device check"), engine.info
    return [rng.randrange(info.vocab_size) for _ in range(min(_BLIND_TOKENS, info.context_length - 1))]


def _blind_positions(length: int) -> list[int]:
    ends = {length // 4, length // 2, *range(max(1, length - 8), length + 1)}
    return sorted(end - 1 for end in ends if end > 0)


def _require_fitting(engine: Engine, tokens: Sequence[int], expected: dict[int, TopLogits]) -> None:
    info = engine.info
    known = max(*tokens, *(token for one in expected.values() for token in one.token_ids), 0)
    if known >= info.vocab_size:
        raise ArtifactError(
            f"the reference logits of {info.name} name token {known:,}, and its vocabulary ends at {info.vocab_size:,}",
            remedy="Convert the checkpoint again, or copy the whole folder again.",
        )
    if len(tokens) >= info.context_length:
        raise InvalidRequest(
            f"the check takes {len(tokens) + 1:,} positions, and the context has {info.context_length:,}",
            remedy=f"Set context_length (--context-length) to {len(tokens) + 1:,} or more, or leave it out.",
        )


def _check(run: _Run, position: int, expected: TopLogits | None) -> PositionCheck:
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
        far=divergence > FAR or (found != top and margin > DECIDED),
    )


def _problems(checks: Sequence[PositionCheck], repeats: bool, typical: float) -> Iterator[str]:
    """What is wrong, worst first."""
    broken = [one for one in checks if not one.finite]
    if broken:
        first = broken[0]
        yield (
            f"logits are not finite at {len(broken)} of {len(checks)} positions, first at {first.position} "
            f"({first.phase}): a value overflowed"
        )
    for phase, name in (("prefill", "prompts"), ("decode", "tokens fed one by one")):
        mine = [one for one in checks if one.phase == phase and one.finite]
        shifts = [one.shift for one in mine if one.shift is not None]
        if not shifts:
            continue
        median, far = statistics.median(shifts), sum(one.far for one in mine)
        if median > typical:
            yield f"{name}: logits are off by {median:.2g} nats in the median, and rounding explains {typical:g}"
        elif far > max(1, _FAR_SHARE * len(mine)):
            yield f"{name}: {far} of {len(mine)} positions are far off"
    if not repeats:
        yield (
            "the same prompt gave other logits the second time: memory or clock of the device is not stable, or its "
            "driver's kernels are not deterministic"
        )
