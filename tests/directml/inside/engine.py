"""Runs in the lab: generates answers to prompts on DirectML and writes them as JSON.

python engine.py FOLDER asked.json answers.json      asked.json: [{"prompt", "new_tokens"}]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_runtime import Engine, GenerationOptions, GptOssError, load_engine


def main() -> None:
    folder, asked, out = sys.argv[1:4]
    answers: list[dict[str, Any]] = []

    def write() -> None:
        Path(out).write_text(json.dumps(answers), encoding="utf-8")

    def failed(error: GptOssError) -> None:
        answers.append({"error": type(error).__name__, "message": error.message, "remedy": error.remedy})
        write()

    try:
        with load_engine(folder, provider="directml") as engine:
            answers.append({"context_length": engine.info.context_length, "memory": memory()})
            try:
                answer(engine, json.loads(Path(asked).read_text(encoding="utf-8")), answers)
            except GptOssError as error:
                failed(error)  # before the engine is closed: closing it on a removed device may crash the process
    except GptOssError as error:
        failed(error)
    write()


def answer(engine: Engine, asked: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    for one in asked:
        options = GenerationOptions(temperature=0.0, max_new_tokens=one["new_tokens"], stop_token_ids=())
        with engine.generate(one["prompt"], options) as generation:
            answers.append({"tokens": list(generation), "memory": memory()})


def memory() -> list[int]:
    """Current and peak bytes of the GPU's memory, then of the system's."""
    return [int(number) for number in np.fromfile("memory", np.uint64)]


if __name__ == "__main__":
    main()
