"""The designs of the experts on the real DirectML, on a scaled-down gpt-oss: nodes, start, memory, time.

    python -m benchmarks.directml_designs [--json]

Runs in the lab (tests/directml/lab) on a software GPU. Memory and nodes are DirectML's own; times only compare designs
with each other. directml_model.py computes bounds for GPUs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir

from gptoss_convert.graph.pieces import Limit
from gptoss_convert.synthetic import write_checkpoint
from gptoss_convert.targets import directml
from tests.directml.lab.lab import Lab
from tests.directml.measuring import SCALED_DOWN, graph, measure

PROMPT, MAX_LENGTH = 128, 256
WHOLE, PIECES = Limit(1 << 30), Limit(9 << 20)  # all 32 experts at once; nine of them
ROWS = {
    "dense": ("dense", WHOLE, [PROMPT, 1, 1]),
    "slots": ("slots", WHOLE, [1, 1]),
    "split, all at once": ("split", WHOLE, [PROMPT, 1, 1]),
    "split, in pieces": ("split", PIECES, [PROMPT, 1, 1]),
}


def measure_design(
    lab: Lab, checkpoint: Path, folder: Path, design: str, limit: Limit, lengths: list[int]
) -> dict[str, Any]:
    """Measures one design in a process of its own."""
    budget = graph(checkpoint, directml.target(design, limit=limit), folder)
    taken = measure(lab, folder, lengths, MAX_LENGTH)
    decode = taken["runs"][-1]
    prompt = taken["runs"][0] if lengths[0] > 1 else None
    return {
        "nodes": len(ir.load(folder / "model.onnx").graph),
        "create_s": taken["create_s"],
        "weights": budget.weights,
        "loaded": taken["loaded"],
        "prompt_s": prompt and prompt["s"],
        "prompt_over": prompt and prompt["peak"] - taken["with_cache"],
        "first_token_s": taken["runs"][-2]["s"],
        "token_s": decode["s"],
    }


def main() -> None:
    """Prints the table of docs/directml.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    as_json, lab, rows = parser.parse_args().json, Lab.ensure(), {}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_checkpoint(Path(scratch) / "checkpoint", SCALED_DOWN, seed=3)
        for number, (name, (design, limit, lengths)) in enumerate(ROWS.items()):
            rows[name] = measure_design(lab, checkpoint, Path(scratch) / str(number), design, limit, lengths)
    if as_json:
        print(json.dumps(rows))
        return
    mb = 1e6
    print("                    nodes  create  weights  loaded  prompt of 128     over   first token  token")
    for name, one in rows.items():
        prompt = "       -          -   "
        if one["prompt_s"] is not None:
            prompt = f"{one['prompt_s']:9.1f} s {one['prompt_over'] / mb:7.1f} MB"
        print(
            f"{name:19}{one['nodes']:6}{one['create_s']:6.1f} s{one['weights'] / mb:8.1f}{one['loaded'] / mb:8.1f} MB"
            f"{prompt}{one['first_token_s']:11.2f} s{one['token_s']:7.2f} s"
        )


if __name__ == "__main__":
    main()
