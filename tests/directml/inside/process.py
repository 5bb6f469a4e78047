"""Runs in the lab: tests ProcessEngine on Windows and DirectML and writes the findings as JSON.

python process.py FOLDER out.json
python process.py FOLDER parent         loads, starts a generation, prints the child's pid and waits to be killed
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gptoss_runtime import Engine, EngineDied, GenerationOptions, GptOssError
from gptoss_runtime.engine_process.engine import ProcessEngine

PROMPT = [200006, 1428, 200008, 24912, 200007, 200006, 173781]
GREEDY = GenerationOptions(temperature=0.0, max_new_tokens=6, stop_token_ids=())
ENDLESS = GenerationOptions(temperature=0.0, stop_token_ids=())


def has_ended(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not psutil.pid_exists(pid)


def generate_two(engine: Engine) -> list[list[int]]:
    """Generates two answers at once, token by token."""
    generations = [engine.generate([*PROMPT, last], GREEDY) for last in (0, 1)]
    rows = list(zip(*generations, strict=True))
    return [list(column) for column in zip(*rows, strict=True)]


def kill_child(engine: ProcessEngine) -> str:
    running = engine.generate(PROMPT, ENDLESS)
    next(running)
    psutil.Process(engine.pid).kill()
    try:
        list(running)
    except EngineDied as error:
        return error.message
    return ""


def kill_parent(folder: str) -> bool:
    command = [sys.executable, __file__, folder, "parent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    return has_ended(pid)


def collect_findings(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with ProcessEngine.load(folder, provider="directml", slots=2) as engine:
        found["slots"] = engine.slots
        found["alone"] = [list(engine.generate([*PROMPT, last], GREEDY)) for last in (0, 1)]
        found["memory"] = [int(number) for number in np.fromfile("memory", np.uint64)]
        found["together"] = generate_two(engine)
        found["memory_together"] = [int(number) for number in np.fromfile("memory", np.uint64)]
        with engine.generate(PROMPT, ENDLESS) as running:
            next(running)
        found["after_cancel"] = list(engine.generate([*PROMPT, 0], GREEDY))
        found["killed"] = kill_child(engine)
        found["after_kill"] = list(engine.generate([*PROMPT, 0], GREEDY))
        found["restarts"] = engine.restarts
    found["closed"] = has_ended(engine.pid)
    try:
        ProcessEngine.load("nowhere")
    except GptOssError as error:
        found["load_error"] = type(error).__name__
    found["parent_dies"] = kill_parent(folder)
    return found


if __name__ == "__main__":
    if sys.argv[2] == "parent":
        parents = ProcessEngine.load(sys.argv[1], provider="directml")
        busy = parents.generate(PROMPT, ENDLESS)
        print(parents.pid, flush=True)
        time.sleep(600)
    Path(sys.argv[2]).write_text(json.dumps(collect_findings(sys.argv[1])), encoding="utf-8")
