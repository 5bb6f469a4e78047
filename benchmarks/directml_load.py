"""Loads the first layers of gpt-oss at full width on the real DirectML, and measures their memory.

    python -m benchmarks.directml_load --work DIR [--layers 2] [--json]

Full dimensions and vocabulary, 32 experts, random weights (2.8 GB for two layers, kept in DIR). Runs in the lab
(tests/directml/lab) on a software GPU: memory is DirectML's own, but times are not a GPU's. The result is compared with
the manifest's memory budget.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from gptoss_convert.synthetic import write_convertible
from gptoss_convert.targets import directml
from tests.directml.lab.lab import Lab
from tests.directml.measuring import graph, measure

LENGTHS, MAX_LENGTH = [16, 1, 1], 1024


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lab = Lab.ensure()
    checkpoint = write_convertible(
        options.work / f"random-{options.layers}-layers-32-experts", {"num_hidden_layers": options.layers}, shards=3
    )
    folder = options.work / f"graph-{options.layers}-layers"
    shutil.rmtree(folder, ignore_errors=True)
    budget = graph(checkpoint, directml.target(), folder)
    taken = measure(lab, folder, LENGTHS, MAX_LENGTH)
    shutil.rmtree(folder)
    peak = max(run["peak"] for run in taken["runs"])
    if options.json:
        print(json.dumps({"budget": budget.at(MAX_LENGTH), "weights": budget.weights, "peak": peak, **taken}))
        return
    print(f"{options.layers} layers, preset smallest: session in {taken['create_s']:.1f} s")
    print(f"weights  {budget.weights / 1e9:5.2f} GB computed  {taken['loaded'] / 1e9:5.2f} GB taken")
    print(
        f"peak     {budget.at(MAX_LENGTH) / 1e9:5.2f} GB computed  {peak / 1e9:5.2f} GB taken, {MAX_LENGTH} positions"
    )
    for run in taken["runs"]:
        print(f"{run['length']:3} token(s) {run['s']:7.1f} s")


if __name__ == "__main__":
    main()
