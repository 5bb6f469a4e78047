"""Converting gpt-oss at full dimensions, compared with ``cp`` of the same files on the same disk with a cold cache.

    python -m benchmarks.convert --work DIR [--layers 24] [--experts 32] [--targets cpu directml] [--rounds 3] [--json]
    python -m benchmarks.convert --work DIR --layers 1 --builder        onnxruntime-genai's own builder beside

Writes a checkpoint of random weights with that many layers (13.8 GB for 24 layers) and keeps it in DIR. Each round runs
``cp`` and then everything else. A disk's speed varies from minute to minute by more than what is measured, so compare
the ratios within a round; medians are printed. Peak memory is the sampled resident set of the whole process tree.
Caches are dropped before each run, which needs root on Linux; otherwise runs are warm, and the output says so. The
builder takes 16 GB for a single layer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks import builder
from gptoss_convert.synthetic import write_convertible

_CACHES = Path("/proc/sys/vm/drop_caches")


def drop_caches() -> bool:
    """Drops the page cache; returns whether that was possible."""
    try:
        subprocess.run(["sync"], check=True)
        _CACHES.write_text("3", encoding="ascii")
    except OSError:
        return False
    return True


def measure(*arguments: str) -> dict[str, Any]:
    """Runs a command; returns seconds and the peak resident set of its process tree in bytes."""
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # ended meanwhile
                peak = max(peak, sum(one.memory_info().rss for one in (root, *root.children(recursive=True))))
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(process.stderr.read().decode() if process.stderr else "failed")
    return {"seconds": time.perf_counter() - began, "peak_memory": peak}


def copy_folder(source: Path, target: Path) -> dict[str, Any]:
    """Times ``cp -r``, without waiting for the disk to be written."""
    began = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    return {"seconds": time.perf_counter() - began}


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--targets", nargs="*", default=["cpu", "directml"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--builder", action="store_true", help="measure onnxruntime-genai's model builder as well")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    source = write_convertible(
        options.work / f"random-{options.layers}-layers-{options.experts}-experts",
        {"num_hidden_layers": options.layers, "num_local_experts": options.experts},
        shards=3,
    )
    report: dict[str, Any] = {"input": folder_size(source), "cold": drop_caches()}
    outputs = {name: options.work / f"{source.name}-{name}" for name in options.targets}
    convert = (sys.executable, "-m", "gptoss_runtime.cli.main", "convert", str(source), "--overwrite", "--target")
    runs = {name: [*convert, name, "-o", str(out)] for name, out in outputs.items()}
    if options.builder:
        outputs["builder"] = options.work / f"{source.name}-builder"
        runs["builder"] = builder.make_command(source, outputs["builder"], options.work / "cache")
    rounds = [run_round(source, options.work / "copy", runs, outputs) for _ in range(options.rounds)]
    for name in ("cp", *runs):
        report[name] = {key: median(one[name][key] for one in rounds) for key in rounds[0][name]}
        report[name]["rounds"] = [one[name]["seconds"] for one in rounds]
    if options.json:
        print(json.dumps(report))
        return
    cold = "cold" if report["cold"] else "warm"
    print(f"{options.layers} layers, {options.experts} experts: {report['input'] / 1e9:.1f} GB, caches {cold}")
    copy = report["cp"]
    print(f"cp         {copy['seconds']:7.1f} s                                            {format_rounds(copy)}")
    for name in runs:
        one = report[name]
        print(
            f"{name:10} {one['seconds']:7.1f} s  {one['times_cp']:5.2f} x cp  peak {one['peak_memory'] / 1e9:5.2f} GB  "
            f"output {one['output'] / 1e9:5.2f} GB  {format_rounds(one)}"
        )


def run_round(
    source: Path, copy: Path, runs: Mapping[str, Sequence[str]], outputs: Mapping[str, Path]
) -> dict[str, dict[str, float]]:
    """Runs ``cp`` and everything else once; only the output of the last run is kept."""
    drop_caches()
    times = {"cp": copy_folder(source, copy)}
    shutil.rmtree(copy)
    for name, line in runs.items():
        for out in outputs.values():
            shutil.rmtree(out, ignore_errors=True)
        drop_caches()
        times[name] = measure(*line) | {"output": folder_size(outputs[name])}
        times[name]["times_cp"] = times[name]["seconds"] / times["cp"]["seconds"]
    return times


def format_rounds(one: Mapping[str, Any]) -> str:
    """The rounds' seconds, as text."""
    return "/".join(f"{seconds:.0f}" for seconds in one["rounds"])


if __name__ == "__main__":
    main()
