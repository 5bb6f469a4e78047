"""Random checkpoints of which some tensors are changed, and how far two results are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.activation_profile import Array, Profile
from gptoss_convert.checkpoint import Checkpoint


@dataclass(frozen=True)
class Changed(Profile):
    """Random weights of which some are changed.

    Attributes:
        changes: what becomes of tensors, by a part of their names; they are float32, MXFP4's scales bytes.
    """

    changes: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)

    def adjustment(self, name: str, layers: int) -> Callable[[Array], Array] | None:
        found = [change for part, change in self.changes.items() if part in name]
        assert len(found) <= 1
        return found[0] if found else None


def overwrite(checkpoint: Path, name: str, index: Any, value: float) -> None:
    """Puts a value into a tensor on disk."""
    tensor = Checkpoint.open(checkpoint).tensors[name]
    values = tensor.array()
    values[index] = value
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(values.tobytes())


def relative(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The difference's norm by the reference's; not a number where one of theirs is none."""
    return float(np.linalg.norm(other - reference) / np.linalg.norm(reference))


def relative_by_token(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """As :func:`relative`, the largest of any token after the tenth of them that is furthest apart.

    In random weights experts are as good as tied for some tokens, and another rounding chooses another.
    """
    by_token = np.linalg.norm(other - reference, axis=-1) / np.linalg.norm(reference, axis=-1)
    return float(np.quantile(by_token, 0.9))
