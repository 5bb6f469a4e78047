"""Changes tensors of random checkpoints, and measures how far two results differ."""

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
    """A profile that changes some random weights.

    Attributes:
        changes: functions applied to tensors, by a part of the name; the values are float32, MXFP4's scales bytes.
    """

    changes: Mapping[str, Callable[[Array], Array]] = field(default_factory=dict)

    def adjustment(self, name: str, layers: int) -> Callable[[Array], Array] | None:
        found = [change for part, change in self.changes.items() if part in name]
        assert len(found) <= 1
        return found[0] if found else None


def overwrite(checkpoint: Path, name: str, index: Any, value: float) -> None:
    """Writes a value into a tensor on disk."""
    tensor = Checkpoint.open(checkpoint).tensors[name]
    values = tensor.array()
    values[index] = value
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(values.tobytes())


def relative(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The relative L2 difference; NaN if any value is NaN."""
    return float(np.linalg.norm(other - reference) / np.linalg.norm(reference))


def relative_by_token(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The 90th percentile over tokens of the relative L2 difference.

    With random weights, the experts of some tokens are nearly tied, and other rounding chooses other ones.
    """
    by_token = np.linalg.norm(other - reference, axis=-1) / np.linalg.norm(reference, axis=-1)
    return float(np.quantile(by_token, 0.9))
