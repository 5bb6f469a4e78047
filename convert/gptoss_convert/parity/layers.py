"""How far an artifact's residual stream is from its reference's, layer by layer.

Knows that graphs name the stream ``hidden_states.0`` (the embedding) to ``hidden_states.N`` (after the last layer), and
how to make outputs of them. A copy of the graph without weights is changed in memory; the artifact stays as it is.
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

from gptoss_convert.parity.session import Session, pieces_of

_NAME = re.compile(r"hidden_states\.(\d+)")


@dataclass(frozen=True, eq=False)
class LayerErrors:
    """Errors after as many layers as the index says, [layers + 1]; NaN where the graph does not name its values.

    Attributes:
        relative: norm of the difference by the norm of the reference's values, over all positions; inf where one of the
            artifact's is not finite.
        median: the same position by position, and the median of them: what a few massive positions don't hide.
        positions: how many were compared.
    """

    relative: NDArray[np.float64]
    median: NDArray[np.float64]
    positions: int

    @property
    def first_not_finite(self) -> int | None:
        """The number of layers after which the artifact's values are not finite; None: they always are."""
        where = np.flatnonzero(np.isinf(self.relative))
        return int(where[0]) if len(where) else None

    def figures(self) -> list[dict[str, Any]]:
        """For JSON, which has no number that is none."""
        numbers = [[float(x) if np.isfinite(x) else None for x in part] for part in (self.relative, self.median)]
        return [
            {"layers": done, "relative": relative, "median": median, "finite": not np.isinf(self.relative[done])}
            for done, (relative, median) in enumerate(zip(*numbers, strict=True))
            if not np.isnan(self.relative[done])
        ]


def layer_errors(
    model: Path, token_ids: Sequence[int], expected: NDArray[np.float32], *, provider: str = "cpu"
) -> LayerErrors | None:
    """Runs a graph and compares its residual stream.

    Args:
        model: the model.onnx.
        token_ids: a sequence; as many of its tokens are fed as there are expected.
        expected: the reference's, [layers + 1, positions, hidden].
        provider: one that this onnxruntime has.

    Returns:
        None if the graph does not name any of these values.
    """
    changed = ir.load(model)
    values = {value.name or "": value for node in changed.graph for value in node.outputs}
    names = [name for name in values if _NAME.fullmatch(name)]
    if not names:
        return None
    changed.graph.outputs.extend(values[name] for name in names if values[name] not in changed.graph.outputs)
    session = Session(model, provider, changed=ir.to_proto(changed).SerializeToString())
    ids = token_ids[: expected.shape[1]]
    parts = zip(*session.run(ids, pieces_of(len(ids)), names), strict=True)
    errors = np.full((2, len(expected)), np.nan)
    for name, computed in zip(names, parts, strict=True):
        done = int(name.rpartition(".")[2])
        if done < len(expected):
            errors[:, done] = _apart(expected[done], np.concatenate(computed, axis=1)[0])
    return LayerErrors(errors[0], errors[1], len(ids))


def _apart(expected: NDArray[np.float32], computed: NDArray[Any]) -> tuple[float, float]:
    if not np.isfinite(computed).all():
        return np.inf, np.inf
    norms = np.linalg.norm(expected.astype(np.float64), axis=-1)
    apart = np.linalg.norm(computed.astype(np.float64) - expected, axis=-1)
    tiny = np.finfo(np.float64).tiny
    return float(np.linalg.norm(apart) / max(np.linalg.norm(norms), tiny)), float(
        np.median(apart / np.maximum(norms, tiny))
    )
