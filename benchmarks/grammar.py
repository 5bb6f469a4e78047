"""The time per token that a grammar adds: the same prompts with and without it, alternately, on nano.

    python -m benchmarks.grammar [-n 15]

nano's own step takes about a millisecond. What a grammar adds depends only on the vocabulary, not on the model's size,
so the difference in milliseconds also holds for larger models.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from gptoss_convert.nano import materialise
from gptoss_convert.workflow import convert
from gptoss_runtime import Engine, GenerationOptions, Message, Tool, load_engine
from gptoss_runtime.chat.conversation import ResponseFormat
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.chat.turn_grammar import build_turn_grammar
from gptoss_runtime.engine.grammar import Constraint
from gptoss_runtime.harmony_tokens import STOP_TOKENS

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 200},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "rare"]}, "minItems": 40, "maxItems": 60},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TOOLS = [Tool(f"tool_{at}", "Does something.", PERSON) for at in range(32)]
CASES: dict[str, dict[str, Any]] = {
    "free text, calls made impossible": {"grammar": build_turn_grammar(tool_choice="none")},
    "JSON by a schema": {"grammar": build_turn_grammar(response_format=ResponseFormat(PERSON))},
    "a call of one of 32 tools": {"grammar": build_turn_grammar(tools=TOOLS, tool_choice="required")},
    "no grammar, 20 log-probabilities": {"logprobs": 20},
}


def measure_pace(engine: Engine, prompt: list[int], **options: Any) -> tuple[float, int]:
    """Milliseconds per token after the first, and the number of tokens."""
    with engine.generate(prompt, GenerationOptions(**options)) as generation:
        count = sum(1 for _ in generation)
    return 1e3 * generation.result.timings.decode_seconds / max(1, count - 1), count


def main() -> None:
    """Measures every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=15, help="pairs of generations a case")
    rounds = parser.parse_args().n
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        artifact = Path(temporary) / "nano" / "cpu"
        convert(materialise(Path(temporary) / "gptoss-nano"), artifact)
        tokenizer = artifact / "tokenizer.json"
        prompt = Harmony.load(tokenizer).render([Message("user", "Describe a cat.")], effort="low")
        started = time.perf_counter()
        Constraint(tokenizer, 'start: "a"', vocab_size=201_088, stops=STOP_TOKENS)
        print(f"the tokenizer, once per process: {time.perf_counter() - started:.2f} s\n")
        print("| case | with (ms/token) | without | adds | compiled in (ms) |")
        print("|---|---|---|---|---|")
        with load_engine(artifact, threads=1) as engine:
            for name, case in CASES.items():
                given, plain, compiled = [], [], []
                for seed in range(rounds):
                    if "grammar" in case:
                        started = time.perf_counter()
                        Constraint(tokenizer, case["grammar"], vocab_size=201_088, stops=STOP_TOKENS)
                        compiled.append(1e3 * (time.perf_counter() - started))
                    each, count = measure_pace(
                        engine, prompt, seed=seed, max_new_tokens=150, stop_token_ids=STOP_TOKENS, **case
                    )
                    given.append(each)
                    plain.append(measure_pace(engine, prompt, seed=seed, max_new_tokens=count, stop_token_ids=())[0])
                one, other = statistics.median(given), statistics.median(plain)
                took = f"{statistics.median(compiled):.1f}" if compiled else ""
                print(f"| {name} | {one:.2f} | {other:.2f} | {one - other:+.2f} | {took} |", flush=True)


if __name__ == "__main__":
    main()
