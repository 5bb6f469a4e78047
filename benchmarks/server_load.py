"""A server under load: many clients stream, disconnect, read slowly and send invalid requests; all replies are checked.

    python -m benchmarks.server_load ARTIFACT [--clients 64] [--seconds 600] [--slots 4] [--queue 64] [--threads N]
        [--kill SECONDS] [--seed 0] [--json]

First each question is asked alone. Under load, each reply has to be identical to the last token, with the request's id,
with unique ids, and complete. ``--kill`` kills the engine's process at this interval: running requests get an error,
and later ones a reply. Memory is that of the server and of its engine's process; its slope is a line through the second
half of the samples. Exits with 1 if a reply was lost or wrong, or if requests or threads remain afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.questions import INVALID, Question, Reply, encode, questions
from benchmarks.served import Server, serve
from benchmarks.wire import Answer, post

_KINDS = {"stream": 62, "whole": 10, "leave": 12, "slow": 8, "invalid": 8}  # of requests, in percent
_TIMEOUT = 120.0  # seconds until a request counts as lost
_PAUSE = 1.0  # maximum seconds that a client waits after a 503
_SAMPLE = 0.5  # seconds between samples of the memory


@dataclass(slots=True)
class Load:
    """The state and results of a run."""

    server: Server
    random: random.Random
    expected: dict[int, tuple[object, ...]] = field(default_factory=dict)
    asked: list[Question] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    tokens: int = 0
    kills: list[float] = field(default_factory=list)
    memory: list[tuple[float, int, int]] = field(default_factory=list)  # when, server, engine
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def address(self) -> tuple[str, int]:
        """The server's host and port."""
        return self.server.host, self.server.port


async def collect_expected(load: Load) -> None:
    """Asks every question alone; the replies under load must be equal to these."""
    load.asked = list(questions(load.server.model))
    for at, question in enumerate(load.asked):
        reply = Reply()
        content = encode(question, stream=False)
        async with post(load.address, question.path, content, request_id="quiet") as answer:
            body = await answer.body()
            assert answer.status == 200, body
            reply.add_whole(question.path, json.loads(body))
        assert question.says in str(reply.content), (question, reply)
        load.expected[at] = reply.content


async def client(load: Load, until: float) -> None:
    """One client, sending one request after the other."""
    kinds, weights = list(_KINDS), list(_KINDS.values())
    while time.perf_counter() < until:
        kind = load.random.choices(kinds, weights)[0]
        started = time.perf_counter()
        try:
            async with asyncio.timeout(_TIMEOUT):
                outcome = await (send_invalid(load) if kind == "invalid" else ask(load, kind))
        except Exception as error:
            outcome = f"{kind}: {type(error).__name__}: {error}"
        if outcome not in ("answered", "left", "refused", "overloaded", "died"):
            load.faults.append(outcome)
            outcome = "faults"
        if outcome == "died" and not any(started < at + 5 for at in load.kills):
            load.faults.append("the engine died without being killed")
        load.counts[outcome] += 1
        load.counts[f"{outcome} ({kind})"] += 1
        if outcome == "overloaded":
            await asyncio.sleep(load.random.uniform(0, _PAUSE))


async def send_invalid(load: Load) -> str:
    """Sends an invalid request; returns the outcome."""
    path, body = load.random.choice(INVALID)
    content = json.dumps({"model": load.server.model} | body).encode()
    async with post(load.address, path, content, request_id="invalid") as answer:
        error = json.loads(await answer.body())["error"]
        if answer.status == 503:
            return _classify_503(answer)
        fine = answer.status == 400 and error["type"] == "invalid_request_error" and error["message"]
        return "refused" if fine else f"status {answer.status} for {body}: {error}"


async def ask(load: Load, kind: str) -> str:
    """Asks one question, possibly disconnecting early; returns the outcome."""
    at = load.random.randrange(len(load.asked))
    question, name = load.asked[at], f"request-{next(load.numbers)}"
    content = encode(question, stream=kind != "whole")
    patience = load.random.uniform(0, 10) if kind == "leave" else _TIMEOUT
    reply, started = Reply(), time.perf_counter()
    try:
        async with (
            asyncio.timeout(patience),
            post(load.address, question.path, content, request_id=name, slow=kind == "slow") as answer,
        ):
            if answer.headers["x-request-id"] != name:
                return f"{answer.headers['x-request-id']} answers {name}"
            if answer.status != 200:
                return _classify_error(answer, json.loads(await answer.body()))
            if kind == "whole":
                reply.add_whole(question.path, json.loads(await answer.body()))
            elif not await read_stream(load, question, kind, answer, reply, started):
                return "left"
    except TimeoutError:
        if kind != "leave":
            return f"{kind}: no reply in {_TIMEOUT:.0f} seconds"
        return "left"
    return _check_reply(load, at, question, reply)


async def read_stream(load: Load, question: Question, kind: str, answer: Answer, reply: Reply, started: float) -> bool:
    """Reads a stream; returns False if the client disconnects before its end."""
    leaves_after = load.random.randrange(40) if kind == "leave" else None
    count = 0
    async for at, event in answer.events():
        if reply.add_event(question.path, event):
            if not count and kind == "stream":
                load.firsts.append(at - started)
            count += 1
        if leaves_after is not None and count >= leaves_after:
            return False
        if kind == "slow" and load.random.random() < 0.2:
            await asyncio.sleep(load.random.uniform(0, 0.5))
    return True


def _classify_error(answer: Answer, body: dict[str, Any]) -> str:
    if answer.status == 503:
        return _classify_503(answer)
    if answer.status == 500 and body["error"]["code"] == "engine_error":
        return "died"
    return f"status {answer.status}: {body}"


def _classify_503(answer: Answer) -> str:
    return "overloaded" if int(answer.headers.get("retry-after", 0)) >= 1 else "503 without Retry-After"


def _check_reply(load: Load, at: int, question: Question, reply: Reply) -> str:
    if reply.ids & load.ids or len(reply.ids) > 1:
        return f"an id is not unique: {reply.ids}"
    load.ids |= reply.ids
    if not reply.done:
        return "an incomplete stream"
    if reply.sequence != list(range(len(reply.sequence))):
        return f"sequence numbers {reply.sequence}"
    if reply.error is not None:
        return "died" if "process ended" in reply.error["message"] else f"an error: {reply.error}"
    if reply.content != load.expected[at]:
        mixed = "" if question.says in str(reply.content) else "mixed up: "
        return f"{mixed}{question.body} was answered {reply.content}, alone {load.expected[at]}"
    load.tokens += reply.tokens
    return "answered"


async def kill_engine(load: Load, every: float, until: float) -> None:
    """Kills the engine's process at an interval."""
    while time.perf_counter() + every < until:
        await asyncio.sleep(every)
        for engine in psutil.Process(load.server.pid).children():
            load.kills.append(time.perf_counter())
            engine.kill()


async def sample_memory(load: Load) -> None:
    """Samples the memory of server and engine."""
    server = psutil.Process(load.server.pid)
    started = time.perf_counter()
    while True:
        try:
            engine = sum(child.memory_info().rss for child in server.children(recursive=True))
        except psutil.NoSuchProcess:  # killed just now
            engine = 0
        if engine:
            load.memory.append((time.perf_counter() - started, server.memory_info().rss, engine))
        await asyncio.sleep(_SAMPLE)


async def run(load: Load, clients: int, seconds: float, kill_every: float | None) -> dict[str, Any]:
    """Runs all clients; returns the report."""
    server = psutil.Process(load.server.pid)
    await collect_expected(load)
    threads, started = server.num_threads(), time.perf_counter()
    background = [asyncio.create_task(sample_memory(load))]
    if kill_every is not None:
        background.append(asyncio.create_task(kill_engine(load, kill_every, started + seconds)))
    await asyncio.gather(*(client(load, started + seconds) for _ in range(clients)))
    took = time.perf_counter() - started
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    if load.kills and not await _is_answering(load):
        load.faults.append("no answer after the last kill")
    await _wait_until_idle(load, server, threads)
    return _report(load, took)


async def _is_answering(load: Load) -> bool:
    return await ask(load, "stream") == "answered"


async def _wait_until_idle(load: Load, server: psutil.Process, threads: int) -> None:
    """Waits until no request runs or waits and no thread is left; records a fault if that takes too long."""
    for _ in range(100):
        gauges = await _gauges(load)
        if not any(gauges.values()) and server.num_threads() <= threads:
            return
        await asyncio.sleep(0.1)
    load.faults.append(f"left behind: {gauges}, {server.num_threads()} threads instead of {threads}")


async def _gauges(load: Load) -> dict[str, float]:
    reader, writer = await asyncio.open_connection(*load.address)
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: localhost:{load.server.port}\r\nConnection: close\r\n\r\n".encode())
    lines = (await reader.read(-1)).decode().splitlines()
    writer.close()
    found = (
        line.split() for line in lines if line.startswith(("gptoss_requests_waiting ", "gptoss_requests_running "))
    )
    return {name: float(value) for name, value in found}


def _report(load: Load, took: float) -> dict[str, Any]:
    half = load.memory[len(load.memory) // 2 :]
    quantiles = statistics.quantiles(load.firsts, n=100) if len(load.firsts) > 1 else [0.0] * 99
    memory: dict[str, float] = {}
    for at, name in ((1, "server"), (2, "engine")):
        sizes = [sample[at] / 2**20 for sample in half]
        slope = statistics.linear_regression([sample[0] / 60 for sample in half], sizes).slope if len(half) > 1 else 0.0
        memory |= {f"{name}_mb": sizes[-1], f"{name}_mb_a_minute": slope}
    return {
        "seconds": took,
        "answers_a_second": load.counts["answered"] / took,
        "tokens_a_second": load.tokens / took,
        "first_token_p50_ms": 1e3 * quantiles[49],
        "first_token_p99_ms": 1e3 * quantiles[98],
        **memory,
        "kills": len(load.kills),
        "counts": dict(sorted(load.counts.items())),
        "faults": load.faults,
    }


def main() -> None:
    """Runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--queue", type=int, default=64)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kill", type=float, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    options = ["--slots", str(given.slots), "--queue", str(given.queue)]
    options += [] if given.threads is None else ["--threads", str(given.threads)]
    with serve(given.artifact, *options) as server:
        load = Load(server, random.Random(given.seed))
        report = asyncio.run(run(load, given.clients, given.seconds, given.kill))
    if given.json:
        print(json.dumps(report))
    else:
        faults, counts = report.pop("faults"), report.pop("counts")
        for name, value in (report | counts).items():
            print(f"{name:28} {value:12,.1f}")
        print("\n".join(faults[:20]) or "no faults")
    sys.exit(1 if load.faults else 0)


if __name__ == "__main__":
    main()
