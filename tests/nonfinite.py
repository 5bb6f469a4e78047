"""Models whose logits are not finite: a scripted engine with faults, and nano with damaged weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from gptoss_runtime.engine.scripted import ScriptedEngine

Logits = NDArray[np.float32]


def _everywhere(value: float) -> Callable[[Logits, int], None]:
    return lambda logits, _: logits.fill(value)


def _once(value: float) -> Callable[[Logits, int], None]:
    return lambda logits, at: logits.__setitem__(at % logits.size, value)


# Faults of logits, by name; the number is the index of the faulty logit, if it is a single one.
FAULTS: dict[str, Callable[[Logits, int], None]] = {
    "all NaN": _everywhere(np.nan),
    "one NaN": _once(np.nan),
    "all +inf": _everywhere(np.inf),
    "one +inf": _once(np.inf),
    "all -inf": _everywhere(-np.inf),
    "one -inf": _once(-np.inf),
}


class FaultyEngine(ScriptedEngine):
    """Replays scripts and makes logits faulty at given tokens.

    Args:
        scripts: as for ``ScriptedEngine``.
        faults: by the generation's number, the index of the token whose logits are faulty, and the fault's name.
        at: the index of the faulty logit, if it is a single one.
        settings: as for ``ScriptedEngine``.

    ``discarded`` counts the caches that the decoding loop has discarded.
    """

    def __init__(
        self, scripts: Iterable[Sequence[int]], faults: Mapping[int, tuple[int, str]], *, at: int = 17, **settings: Any
    ) -> None:
        super().__init__(scripts, **settings)
        self.discarded = 0
        self._faults = dict(faults)
        self._at = at

    def _forward(self, tokens: list[int], *, owner: object, max_length: int) -> tuple[Logits, int]:
        logits, cached = super()._forward(tokens, owner=owner, max_length=max_length)
        step, fault = self._faults.get(len(self.prompts) - 1, (-1, ""))
        if len(tokens) - len(self.prompts[-1]) == step:
            FAULTS[fault](logits, self._at)
        return logits, cached

    def _discard(self, owner: object) -> None:
        self.discarded += 1


def with_infinite_norm(artifact: Path, folder: Path) -> Path:
    """A copy of an artifact whose last norm overflows, so that no logit is finite."""
    return damage_weights(artifact, folder, "model.norm.weight", lambda weights: weights.view(np.float32).fill(np.inf))


def with_poisoned_token(artifact: Path, folder: Path, token: int) -> Path:
    """A copy of an artifact in which the embedding of one token is NaN."""

    def poison(weights: NDArray[np.uint8]) -> None:
        weights.view(np.uint16).reshape(-1, 128)[token] = 0x7FC0  # bfloat16's NaN

    return damage_weights(artifact, folder, "model.embed_tokens.weight", poison)


def damage_weights(artifact: Path, folder: Path, name: str, damage: Callable[[NDArray[np.uint8]], None]) -> Path:
    """A copy of an artifact in which ``damage`` changed the bytes of one initializer; the manifest stays as it was."""
    copy = folder / artifact.name
    shutil.copytree(artifact, copy, copy_function=_link)
    data = copy / "model.onnx.data"
    data.unlink()
    shutil.copyfile(artifact / data.name, data)
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    [weights] = [one for one in model.graph.initializer if one.name == name]
    place = {entry.key: entry.value for entry in weights.external_data}
    mapped = np.memmap(data, np.uint8, "r+", int(place["offset"]), (int(place["length"]),))
    damage(mapped)
    mapped.flush()
    return copy


def _link(source: str, target: str) -> None:
    """Shares a file where the system can: nothing but the weights' is changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
