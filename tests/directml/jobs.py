"""Runs all graphs of a test module on the lab's onnxruntime with one start of Windows' Python."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.parity import session

from .lab.lab import Lab


@dataclass
class Jobs:
    """Graphs to run in the lab, and their logits afterwards."""

    folder: Path
    jobs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, model: Path, ids: Sequence[int], pieces: Sequence[int], max_length: int) -> None:
        inside = model.relative_to(self.folder).as_posix()
        more = {"token_ids": list(ids), "pieces": list(pieces), "max_length": max_length, "out": f"{name}.npy"}
        self.jobs.append({"model": inside, **more})

    def run(self, lab: Lab) -> None:
        (self.folder / "jobs.json").write_text(json.dumps(self.jobs))
        mounts = {"parity": Path(session.__file__).parent, "inside": Path(__file__).parent / "inside"}
        done = lab.run(r"Z:\lab\inside\graphs.py", "jobs.json", folder=self.folder, mounts=mounts, timeout=900)
        assert done.returncode == 0, done.stderr

    def logits(self, name: str) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = np.load(self.folder / f"{name}.npy")
        return rows
