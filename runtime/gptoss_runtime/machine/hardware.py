"""The operating system, the processor and the main memory, through psutil. Graphics adapters are in adapters.py."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

WINDOWS = os.name == "nt"


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor as this process may use it; memory in bytes."""

    physical_cores: int
    logical_cores: int
    memory_total: int
    memory_available: int


def cpu() -> Cpu:
    """Returns the current figures; never more cores than this process's CPU affinity allows."""
    logical = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = min(psutil.cpu_count(logical=False) or logical, logical)
    memory = psutil.virtual_memory()
    return Cpu(physical, logical, memory.total, memory.available)


def peak_memory() -> int:
    """Returns this process's peak resident memory, in bytes."""
    info = psutil.Process().memory_info()
    peak = getattr(info, "peak_wset", 0)  # Windows
    if not peak and os.name == "posix":
        import resource  # absent on Windows

        scale = 1 if os.uname().sysname == "Darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return int(peak or info.rss)
