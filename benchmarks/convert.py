"""Converting gpt-oss at full dimensions, against ``cp`` of the same files on the same disk with a cold cache.

    python benchmarks/convert.py --work DIR [--layers 24] [--experts 32] [--targets cpu directml] [--json]
    python benchmarks/convert.py --work DIR --layers 1 --builder        onnxruntime-genai's own builder beside

Writes a checkpoint of random weights with that many layers (13.8 GB for 24 of them) and keeps it in DIR. Peak memory is
the resident set of the whole process tree, sampled; caches are dropped before each run (root on Linux; elsewhere runs
are warm, and it says so). The builder takes 16 GB for a single layer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from gptoss_convert.synthetic import write_convertible

_CACHES = Path("/proc/sys/vm/drop_caches")


def drop_caches() -> bool:
    """Whether files are read from the disk again."""
    try:
        subprocess.run(["sync"], check=True)
        _CACHES.write_text("3", encoding="ascii")
    except OSError:
        return False
    return True


def measured(*arguments: str) -> dict[str, Any]:
    """Runs Python in a process of its own: seconds, and the peak of its tree's resident sets in bytes."""
    began, peak = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):  # ended meanwhile
                peak = max(peak, sum(one.memory_info().rss for one in (root, *root.children(recursive=True))))
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(process.stderr.read().decode() if process.stderr else "failed")
    return {"seconds": time.perf_counter() - began, "peak_memory": peak}


def copied(source: Path, target: Path) -> dict[str, Any]:
    """``cp -r``, until the bytes are on their way to the disk."""
    began = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    return {"seconds": time.perf_counter() - began}


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--targets", nargs="*", default=["cpu", "directml"])
    parser.add_argument("--builder", action="store_true", help="measure onnxruntime-genai's model builder as well")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    source = write_convertible(
        options.work / f"random-{options.layers}-layers-{options.experts}-experts",
        {"num_hidden_layers": options.layers, "num_local_experts": options.experts},
        shards=3,
    )
    report: dict[str, Any] = {"input": size(source), "cold": drop_caches()}
    copy = options.work / "copy"
    report["cp"] = copied(source, copy)
    shutil.rmtree(copy)
    runs = {
        target: ("-m", "gptoss_runtime.cli.main", "convert", str(source), "--target", target, "--overwrite", "-o")
        for target in options.targets
    }
    if options.builder:
        into = ("-c", str(options.work / "cache"), "-o")
        builder = ("-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu")
        runs["builder"] = (*builder, "-i", str(source), *into)
    for name, line in runs.items():
        out = options.work / f"{source.name}-{name}"
        drop_caches()
        report[name] = measured(*line, str(out)) | {"output": size(out)}
        report[name]["times_cp"] = report[name]["seconds"] / report["cp"]["seconds"]
    if options.json:
        print(json.dumps(report))
        return
    cold = "cold" if report["cold"] else "warm"
    print(f"{options.layers} layers, {options.experts} experts: {report['input'] / 1e9:.1f} GB, caches {cold}")
    print(f"cp         {report['cp']['seconds']:7.1f} s")
    for name in runs:
        one = report[name]
        print(
            f"{name:10} {one['seconds']:7.1f} s  {one['times_cp']:5.2f} x cp  peak {one['peak_memory'] / 1e9:5.2f} GB  "
            f"output {one['output'] / 1e9:5.2f} GB"
        )


if __name__ == "__main__":
    main()
