"""Native MXFP4 experts compared with int4 experts on the CPU, at gpt-oss-20b's dimensions.

    python -m benchmarks.cpu_decode --work DIR [--layers 4] [--rounds 3] [--targets cpu cpu-int4] [--json]

Writes a checkpoint of random weights with that many layers (0.6 GB each, and 2.3 GB beside), converts it for ``cpu``
and ``cpu-int4``, and runs ``gptoss bench`` on both in turn. Files in DIR are kept and reused. Random weights are as
fast as trained ones, because the work for a token does not depend on values.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from gptoss_convert.synthetic import write_convertible

TARGETS = ("cpu", "cpu-int4")  # ours, the rival
RATES = ("decode_rate", "prefill_rate")


def run_gptoss(*arguments: str) -> dict[str, Any]:
    """Runs a gptoss command in a process of its own, so that peak memory is its own."""
    command = [sys.executable, "-m", "gptoss_runtime.cli.main", *arguments, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    source = write_convertible(
        options.work / f"random-20b-{options.layers}-layers",
        {"num_hidden_layers": options.layers, "max_position_embeddings": 8192},
    )
    artifacts = {target: options.work / f"{source.name}-{target}" for target in options.targets}
    conversions = {
        target: run_gptoss("convert", str(source), "-o", str(out), "--target", target)
        for target, out in artifacts.items()
        if not out.exists()
    }
    size = ("--prompt-tokens", str(options.prompt_tokens), "--new-tokens", str(options.new_tokens), "--repeat", "1")
    runs: dict[str, list[dict[str, Any]]] = {target: [] for target in artifacts}
    for _ in range(options.rounds):
        for target, out in artifacts.items():
            runs[target].append(run_gptoss("bench", str(out), *size))
    report: dict[str, Any] = {"layers": options.layers, "rounds": options.rounds}
    for target, results in runs.items():
        names = (*RATES, "time_to_first_token", "load_seconds", "peak_memory")
        report[target] = {name: statistics.median(result[name] for result in results) for name in names}
        if target in conversions:
            report[target] |= {f"convert_{name}": conversions[target][name] for name in ("seconds", "peak_memory")}
    if all(target in runs for target in TARGETS):
        us, rival = (report[target] for target in TARGETS)
        report["ratio"] = {name: us[name] / rival[name] for name in RATES}
    if options.json:
        print(json.dumps(report))
        return
    for target in runs:
        print(target)
        for name, value in report[target].items():
            print(
                f"  {name:22}{value / 2**20 if 'memory' in name else value:12,.2f}{' MB' if 'memory' in name else ''}"
            )
    if "ratio" in report:
        print("ratio", ", ".join(f"{name} {value:.2f}" for name, value in report["ratio"].items()))


if __name__ == "__main__":
    main()
