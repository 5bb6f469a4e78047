"""The cost of the engine's process and of the server: the bare engine, ``ProcessEngine`` and an HTTP stream, in turn.

    python -m benchmarks.server_overhead ARTIFACT [--rounds 25] [--prompt-words 60] [--new-tokens 200] [--streams 4]
        [--threads 1] [--json]

Each round asks all three for the same greedy answer, with the same prompt, grammar and stop tokens; figures are medians
over rounds, measured by the caller. The first token is the first with text: before it, harmony names a channel, and a
stream sends nothing. Then the total tokens per second of several concurrent streams is compared with one stream. A
small model is the hard case, because the cost of delivering a token does not grow with the model: nano takes 2 ms per
token.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.served import Server, serve
from gptoss_runtime import Engine, GenerationOptions, Message, load_engine
from gptoss_runtime.artifact.folder import TOKENIZER
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine_process.engine import ProcessEngine
from gptoss_runtime.harmony_tokens import STOP_TOKENS
from gptoss_runtime.server.prompt import prepare_generation
from gptoss_runtime.server.turn_request import TurnRequest

_WORDS = ("river", "stone", "winter", "garden", "letter", "window", "coffee", "market", "silver", "engine", "planet")
_HEADER = 3  # tokens before the first with text: <|channel|>, its name, <|message|>
_NO_STOP = {str(token): -100 for token in STOP_TOKENS}


class Run(NamedTuple):
    """What one caller measured."""

    first: float  # seconds to the first token with text
    rate: float  # tokens per second after it


class Question(NamedTuple):
    """The same request for the engine and for the server."""

    prompt: list[int]
    options: GenerationOptions
    body: dict[str, Any]


def make_question(engine: Engine, harmony: Harmony, model: str, text: str, new_tokens: int) -> Question:
    """Prepares a text as the server would; the answer has exactly ``new_tokens`` tokens."""
    options = GenerationOptions(
        max_new_tokens=new_tokens, temperature=0, logit_bias=tuple((token, -100.0) for token in STOP_TOKENS)
    )
    prompt, prepared = prepare_generation(engine, harmony, TurnRequest((Message("user", text),), options=options))
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_completion_tokens": new_tokens,
        "logit_bias": _NO_STOP,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Question(prompt, prepared, body)


def ask_engine(engine: Engine, harmony: Harmony, asked: Question) -> Run:
    """Times one generation."""
    started = time.perf_counter()
    tokens, times = [], []
    with engine.generate(asked.prompt, asked.options) as generation:
        for token in generation:
            tokens.append(token)
            times.append(time.perf_counter())
    parser = harmony.parser()
    said = next(at for at, token in enumerate(tokens) if parser.feed(token))
    return Run(times[said] - started, (len(times) - said - 1) / (times[-1] - times[said]))


class Client:
    """A client with one persistent connection; its parsing is not timed."""

    def __init__(self, server: Server) -> None:
        self._connection = socket.create_connection((server.host, server.port))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._host = f"localhost:{server.port}"

    def ask(self, asked: Question) -> Run:
        """Times one stream by the arrival of its bytes."""
        content = json.dumps(asked.body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        arrived: list[tuple[float, bytes]] = []
        started = time.perf_counter()
        self._connection.sendall(request)
        while not arrived or not arrived[-1][1].endswith(b"0\r\n\r\n"):  # the last chunk
            data = self._connection.recv(1 << 16)
            assert data, "the server closed the connection"
            arrived.append((time.perf_counter(), data))
        events = list(_events(arrived))
        deltas = [(at, chunk["choices"][0]) for at, chunk in events if chunk["choices"]]
        first = next(at for at, choice in deltas if choice["delta"].get("reasoning") or choice["delta"].get("content"))
        last = next(at for at, choice in deltas if choice["finish_reason"] is not None)
        made = events[-1][1]["usage"]["completion_tokens"]
        assert made == asked.options.max_new_tokens
        return Run(first - started, (made - 1 - _HEADER) / (last - first))


def _events(arrived: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, Any]]:
    """Yields (time of arrival, event) of a stream."""
    for at, data in arrived:
        for line in data.split(b"\n"):
            if line.startswith(b"data: {"):
                yield at, json.loads(line.removeprefix(b"data: "))


def measure_concurrent(asks: Sequence[Callable[[Question], Run]], make: Callable[[], Question]) -> float:
    """Total tokens per second of concurrent streams."""
    questions = [make() for _ in asks]
    threads = [threading.Thread(target=ask, args=(asked,)) for ask, asked in zip(asks, questions, strict=True)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(asked.options.max_new_tokens or 0 for asked in questions) / (time.perf_counter() - started)


def measure(sides: dict[str, Callable[[Question], Run]], rounds: int, make: Callable[[], Question]) -> dict[str, float]:
    """Medians over rounds, and each side relative to the first; the order changes with every round."""
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(-1, rounds):
        same = make()
        for name in names[number % len(names) :] + names[: number % len(names)]:
            made = sides[name](same)
            if number >= 0:  # the first round warms up
                runs[name].append(made)
    report = {}
    bare = runs[names[0]]
    for name in names:
        report[f"{name}_tokens_per_second"] = statistics.median(run.rate for run in runs[name])
        report[f"{name}_first_token_ms"] = 1e3 * statistics.median(run.first for run in runs[name])
    for name in names[1:]:
        pairs = list(zip(runs[name], bare, strict=True))
        report[f"{name}_ratio"] = statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)
        report[f"{name}_first_token_ms_more"] = 1e3 * statistics.median(
            ours.first - theirs.first for ours, theirs in pairs
        )
    return report


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--prompt-words", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    slots, threads = arguments.streams, arguments.threads
    harmony = Harmony.load(arguments.artifact / TOKENIZER)
    words = random.Random(0)
    with (
        load_engine(arguments.artifact, threads=threads, slots=slots) as bare,
        ProcessEngine.load(arguments.artifact, threads=threads, slots=slots) as process,
        serve(arguments.artifact, "--threads", str(threads), "--slots", str(slots)) as server,
    ):

        def make() -> Question:
            text = " ".join(words.choices(_WORDS, k=arguments.prompt_words))
            return make_question(bare, harmony, server.model, text, arguments.new_tokens)

        sides: dict[str, Callable[[Question], Run]] = {
            "bare": lambda asked: ask_engine(bare, harmony, asked),
            "process": lambda asked: ask_engine(process, harmony, asked),
            "server": Client(server).ask,
        }
        report = measure(sides, arguments.rounds, make)
        for name, asks in (
            ("process", [sides["process"]] * slots),
            ("server", [Client(server).ask for _ in range(slots)]),
        ):
            report[f"{name}_alone"] = measure_concurrent(asks[:1], make)
            report[f"{name}_{slots}_streams"] = measure_concurrent(asks, make)
    if arguments.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:32} {value:10.3f}")


if __name__ == "__main__":
    main()
