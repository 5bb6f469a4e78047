"""Errors of an artifact's hidden states against its reference's, by layer.

Graphs name the residual stream ``hidden_states.0`` (the embedding) to ``hidden_states.N`` (after the last layer). These
values become outputs of a copy of the graph in memory; the artifact is not changed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gptoss_convert.parity.session import Session, split_prompt

_NAME = re.compile(r"hidden_states\.(\d+)")


@dataclass(frozen=True, eq=False)
class LayerErrors:
    """Errors after 0 to N layers, [layers + 1] each; NaN where the graph does not name the hidden states.

    Attributes:
        relative: relative L2 error over all positions; inf if a value of the artifact is not finite.
        median: median of the positions' relative L2 errors, which a few massive positions do not dominate.
        positions: number of positions compared.
    """

    relative: NDArray[np.float64]
    median: NDArray[np.float64]
    positions: int

    @property
    def first_non_finite(self) -> int | None:
        """The first number of layers after which a value is not finite; None if all are finite."""
        where = np.flatnonzero(np.isinf(self.relative))
        return int(where[0]) if len(where) else None

    def figures(self) -> list[dict[str, Any]]:
        """For JSON; null instead of inf and NaN."""
        numbers = [[float(x) if np.isfinite(x) else None for x in part] for part in (self.relative, self.median)]
        return [
            {"layers": done, "relative": relative, "median": median, "finite": not np.isinf(self.relative[done])}
            for done, (relative, median) in enumerate(zip(*numbers, strict=True))
            if not np.isnan(self.relative[done])
        ]


def measure_layer_errors(
    model: Path, token_ids: Sequence[int], expected: NDArray[np.float32], *, provider: str = "cpu"
) -> LayerErrors | None:
    """Runs a graph and compares its hidden states.

    Args:
        model: the model.onnx.
        token_ids: a sequence; its first tokens are fed, as many as ``expected`` has positions.
        expected: the reference's hidden states, float32 [layers + 1, positions, hidden].
        provider: an execution provider that this onnxruntime has.

    Returns:
        None if the graph names none of its hidden states.
    """
    changed = ir.load(model)
    values = {value.name or "": value for node in changed.graph for value in node.outputs}
    names = [name for name in values if _NAME.fullmatch(name)]
    if not names:
        return None
    changed.graph.outputs.extend(values[name] for name in names if values[name] not in changed.graph.outputs)
    session = Session(model, provider, changed=ir.to_proto(changed).SerializeToString())
    ids = token_ids[: expected.shape[1]]
    parts = zip(*session.run(ids, split_prompt(len(ids)), names), strict=True)
    errors = np.full((2, len(expected)), np.nan)
    for name, computed in zip(names, parts, strict=True):
        done = int(name.rpartition(".")[2])
        if done < len(expected):
            errors[:, done] = _relative_errors(expected[done], np.concatenate(computed, axis=1)[0])
    return LayerErrors(errors[0], errors[1], len(ids))


def _relative_errors(expected: NDArray[np.float32], computed: NDArray[Any]) -> tuple[float, float]:
    if not np.isfinite(computed).all():
        return np.inf, np.inf
    norms = np.linalg.norm(expected.astype(np.float64), axis=-1)
    errors = np.linalg.norm(computed.astype(np.float64) - expected, axis=-1)
    tiny = np.finfo(np.float64).tiny
    return float(np.linalg.norm(errors) / max(np.linalg.norm(norms), tiny)), float(
        np.median(errors / np.maximum(norms, tiny))
    )
