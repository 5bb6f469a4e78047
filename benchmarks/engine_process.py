"""The engine in a process of its own against the same engine in this process.

    python benchmarks/engine_process.py ARTIFACT [--rounds 15] [--prompt-tokens 64] [--new-tokens 200] [--streams 4]
        [--threads 1] [--json]

Each round asks both for the same greedy tokens, in turn; figures are medians over rounds of what the caller sees. Then
so many streams at once, against one alone: tokens a second in all. A small model is the hard case, since what the pipe
costs a token does not grow with the model: nano gives one in 2 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gptoss_runtime import Engine, GenerationOptions
from gptoss_runtime.process import ProcessEngine


class Run(NamedTuple):
    """What one caller saw."""

    first: float  # seconds to the first token
    rate: float  # tokens a second after it


def run(engine: Engine, prompt: list[int], options: GenerationOptions) -> Run:
    """One generation, timed from outside."""
    started = time.perf_counter()
    with engine.generate(prompt, options) as generation:
        next(generation)
        first = time.perf_counter()
        count = sum(1 for _ in generation)
        return Run(first - started, count / (time.perf_counter() - first))


def together(engine: Engine, prompts: list[list[int]], options: GenerationOptions) -> float:
    """Tokens a second of all streams at once."""
    threads = [threading.Thread(target=run, args=(engine, prompt, options)) for prompt in prompts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(prompts) * (options.max_new_tokens or 0) / (time.perf_counter() - started)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    options = GenerationOptions(max_new_tokens=arguments.new_tokens, temperature=0, stop_token_ids=())
    random = np.random.default_rng(0)
    rounds: list[tuple[Run, Run]] = []
    with (
        Engine.load(arguments.artifact, threads=arguments.threads) as bare,
        ProcessEngine.load(arguments.artifact, threads=arguments.threads, slots=arguments.streams) as process,
    ):

        def prompt() -> list[int]:
            return [int(token) for token in random.integers(0, bare.info.vocab_size, arguments.prompt_tokens)]

        for number in range(arguments.rounds + 1):
            same = prompt()
            pair = [run(engine, same, options) for engine in ((process, bare) if number % 2 else (bare, process))]
            if number:  # the first warms up
                rounds.append((pair[0], pair[1]) if number % 2 else (pair[1], pair[0]))
        alone = together(process, [prompt()], options)
        many = together(process, [prompt() for _ in range(arguments.streams)], options)
    report = {
        "tokens_per_second": statistics.median(ours.rate for ours, _ in rounds),
        "tokens_per_second_bare": statistics.median(theirs.rate for _, theirs in rounds),
        "ratio": statistics.median(ours.rate / theirs.rate for ours, theirs in rounds),
        "first_token_ms": statistics.median(ours.first for ours, _ in rounds) * 1e3,
        "first_token_ms_bare": statistics.median(theirs.first for _, theirs in rounds) * 1e3,
        "first_token_ms_more": statistics.median(ours.first - theirs.first for ours, theirs in rounds) * 1e3,
        "streams": arguments.streams,
        "tokens_per_second_alone": alone,
        "tokens_per_second_together": many,
    }
    if arguments.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:28} {value:10.3f}")


if __name__ == "__main__":
    main()
