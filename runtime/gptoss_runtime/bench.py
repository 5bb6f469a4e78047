"""Measures an artifact: load time, time to first token, prefill and decode rates, peak memory.

Times vary between runs and machines, so every rate is a median over repetitions.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_runtime.engine.base import Engine
from gptoss_runtime.engine.loading import load_engine
from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.engine.results import GenerationResult
from gptoss_runtime.errors import InvalidRequest
from gptoss_runtime.machine import hardware


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Medians, in seconds, tokens per second and bytes.

    ``peak_memory`` is that of the whole process since its start. ``load_seconds`` depends on the page cache: the first
    load from disk takes longer.
    """

    name: str
    target: str
    provider: str
    prompt_tokens: int
    new_tokens: int
    repeat: int
    load_seconds: float
    time_to_first_token: float
    prefill_rate: float
    decode_rate: float
    peak_memory: int

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def bench(
    path: str | Path, *, prompt_tokens: int = 256, new_tokens: int = 64, repeat: int = 3, **load: Any
) -> BenchReport:
    """Loads an artifact and measures it. Every repetition has a new prompt, so the KV cache is never reused.

    Args:
        path: the artifact folder.
        prompt_tokens: length of the prompt, which consists of random ids.
        new_tokens: number of tokens generated, at least 2; greedy, stop tokens are ignored.
        repeat: number of repetitions, after a warm-up that is not counted.
        load: options of ``load_engine``.

    Raises:
        InvalidRequest: a count is too small.
        ContextOverflow: the prompt does not fit the context.
        GptOssError: what ``load_engine`` raises.
    """
    for name, value, low in (("prompt_tokens", prompt_tokens, 1), ("new_tokens", new_tokens, 2), ("repeat", repeat, 1)):
        if value < low:
            raise InvalidRequest(f"{name} is {value}", remedy=f"Set it to {low} or more.")
    started = time.perf_counter()
    with load_engine(path, **load) as engine:
        load_seconds = time.perf_counter() - started
        random = np.random.default_rng(0)
        runs = [_run(engine, random, prompt_tokens, new_tokens) for _ in range(repeat + 1)][1:]
        return BenchReport(
            name=engine.info.name,
            target=engine.info.target,
            provider=engine.info.provider,
            prompt_tokens=prompt_tokens,
            new_tokens=runs[0].usage.new_tokens,
            repeat=repeat,
            load_seconds=load_seconds,
            time_to_first_token=statistics.median(run.timings.time_to_first_token for run in runs),
            prefill_rate=statistics.median(run.timings.prefill_rate for run in runs),
            decode_rate=statistics.median(run.timings.decode_rate for run in runs),
            peak_memory=hardware.peak_memory(),
        )


def _run(engine: Engine, random: np.random.Generator, prompt_tokens: int, new_tokens: int) -> GenerationResult:
    prompt = random.integers(0, engine.info.vocab_size, prompt_tokens)
    options = GenerationOptions(max_new_tokens=new_tokens, temperature=0.0, stop_token_ids=())
    with engine.generate(prompt, options) as generation:
        for _ in generation:
            pass
        return generation.result
