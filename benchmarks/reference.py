"""The float32 reference of ``gptoss parity`` at full dimensions: seconds and peak memory.

    python -m benchmarks.reference --work DIR [--layers 24] [--experts 32] [--sequences 4] [--length 320] [--json]

Writes a checkpoint of random weights with that many layers of gpt-oss-20b's dimensions (13.8 GB for 24 layers), keeps
it in DIR, and computes a reference as ``gptoss parity --save-reference`` does. Peak memory is the resident set of the
whole process, including Python, torch and the saved reference; processor time is that of all threads.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.parity.checkpoint_reference import CheckpointReference
from gptoss_convert.parity.sequences import generate_sequences
from gptoss_convert.synthetic import write_convertible
from gptoss_runtime.machine import hardware


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=320)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    changes = {"num_hidden_layers": options.layers, "num_local_experts": options.experts}
    folder = options.work / f"layers-{options.layers}-experts-{options.experts}"
    checkpoint = Checkpoint.open(write_convertible(folder, changes, shards=options.layers // 8 + 1))
    ids = generate_sequences(checkpoint.config.vocab_size, count=options.sequences, length=options.length)
    reference, began = CheckpointReference(checkpoint, ids, "harmony conversations"), time.perf_counter()
    reference.compute()
    layers, peak, cpu = time.perf_counter() - began, hardware.peak_memory(), time.process_time()
    reference.to_saved()
    head = time.perf_counter() - began - layers
    report = {
        **{"layers": options.layers, "experts": options.experts, "sequences": len(ids), "length": options.length},
        **{"layer_seconds": layers, "layer_cpu_seconds": cpu, "layer_peak": peak},
        **{"head_seconds": head, "head_cpu_seconds": time.process_time() - cpu, "peak": hardware.peak_memory()},
    }
    if options.json:
        print(json.dumps(report))
        return
    print(f"{len(ids)} sequences of {options.length} tokens, {options.layers} layers, {options.experts} experts:")
    for part, what in (("layer", "layers"), ("head", "lm_head")):
        seconds, cpu = report[f"{part}_seconds"], report[f"{part}_cpu_seconds"]
        print(f"  {what:8} {seconds:6.0f} s, {cpu:.0f} s of processor time")
    print(f"  peak memory {peak / 1e9:.2f} GB, with lm_head {hardware.peak_memory() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
