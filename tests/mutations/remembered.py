"""A pytest plugin for runs with a fault: caches transformers' logits of a checkpoint between runs.

No fault changes transformers, and loading it is most of what a run would take. Logits are kept by the bytes of the
checkpoint and by the tokens: a fault that makes another checkpoint gets other logits.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools import transformers_reference as reference

FOLDER = "GPTOSS_REMEMBERED"  # environment variable: where they are kept

_load, _logits = reference.load_transformers, reference.transformers_logits


def load(folder: Path, **changes: Any) -> tuple[Path, dict[str, Any]]:
    return folder, changes


def logits(model: tuple[Path, dict[str, Any]], token_ids: Sequence[int]) -> NDArray[np.float32]:
    folder, changes = model
    key = hashlib.sha256(repr((list(token_ids), sorted(changes.items()))).encode())
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        key.update(file.name.encode() + file.read_bytes())
    kept = Path(os.environ[FOLDER], f"{key.hexdigest()}.npy")
    if not kept.exists():
        made = _logits(_load(folder, **changes), token_ids)
        aside = kept.with_suffix(f".{os.getpid()}.npy")
        np.save(aside, made)
        aside.replace(kept)
    rows: NDArray[np.float32] = np.load(kept)
    return rows


def pytest_configure() -> None:
    """Replaces the two functions before any test module imports them."""
    reference.load_transformers, reference.transformers_logits = load, logits
