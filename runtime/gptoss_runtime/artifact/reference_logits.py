"""reference_logits.json: what an artifact's own graph gave for a fixed prompt, to compare another device with.

Written at conversion from the CPU's run of the same weights, so that quantisation cancels out and what is left is the
device. Knows the file and its checks; knows nothing of engines.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gptoss_runtime.artifact import strict_json
from gptoss_runtime.errors import ArtifactError

REFERENCE_LOGITS = "reference_logits.json"
TOP = 32  # logits kept of a position
MAX_POSITIONS = 64  # each may cost a prompt of its own to check
_MAX_BYTES = 1 << 20
_ROUNDED = 1e-3  # more than what is rounded off in the file


class TopLogits(BaseModel):
    """The largest logits of one position.

    Attributes:
        position: index of the token that they follow.
        token_ids: the most likely next tokens, most likely first.
        logits: theirs.
        log_sum_exp: of all logits: with it, logits are log-probabilities.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    position: int = Field(ge=0)
    token_ids: tuple[int, ...] = Field(min_length=1, max_length=TOP)
    logits: tuple[float, ...]
    log_sum_exp: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.token_ids) != len(self.logits):
            raise ValueError("as many logits as token ids are needed")
        if len(set(self.token_ids)) < len(self.token_ids) or min(self.token_ids) < 0:
            raise ValueError("token ids are not distinct, or negative")
        if any(low > high for high, low in pairwise(self.logits)) or self.logits[0] > self.log_sum_exp + _ROUNDED:
            raise ValueError("logits are not descending, or above their sum")
        return self

    @property
    def margin(self) -> float:
        """By how much the most likely token leads, in nats."""
        return self.logits[0] - self.logits[1] if len(self.logits) > 1 else float("inf")

    @classmethod
    def of(cls, position: int, logits: NDArray[np.float32]) -> TopLogits:
        """Of a position's logits, float32 [vocab]."""
        wide = logits.astype(np.float64)
        top = np.argsort(-wide, kind="stable")[:TOP]
        highest = float(wide.max())
        total = highest + float(np.log(np.exp(wide - highest).sum()))
        return cls(
            position=position,
            token_ids=tuple(int(index) for index in top),
            logits=tuple(round(float(value), 5) for value in wide[top]),
            log_sum_exp=round(total, 5),
        )

    def shift(self, logits: NDArray[np.float32]) -> float:
        """How far other logits, finite float32 [vocab], are from these: root mean square over the tokens kept, in nats.

        A constant on all of them changes nothing. Unlike the divergence it shows an error where the model is sure.
        """
        moved = logits[list(self.token_ids)].astype(np.float64) - np.array(self.logits)
        return float(moved.std())

    def divergence(self, logits: NDArray[np.float32]) -> float:
        """Kullback-Leibler divergence of other logits, finite float32 [vocab], from these, in nats.

        Computed over the tokens kept and one class for all others, which makes it a lower bound of the whole's.
        """
        wide = logits.astype(np.float64)
        highest = wide.max()
        theirs = wide[list(self.token_ids)] - highest - np.log(np.exp(wide - highest).sum())
        ours = np.array(self.logits) - self.log_sum_exp
        p, q = (np.append(np.exp(x), max(1e-12, 1 - float(np.exp(x).sum()))) for x in (ours, theirs))
        p, q = (np.maximum(x / x.sum(), 1e-300) for x in (p, q))
        return max(0.0, float((p * (np.log(p) - np.log(q))).sum()))


class ReferenceLogits(BaseModel):
    """A prompt and what followed it.

    Attributes:
        source: "cpu": the artifact's own weights, run by the converter.
        token_ids: the prompt.
        positions: ascending.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    source: Literal["cpu"]
    token_ids: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=4096)
    positions: list[TopLogits] = Field(min_length=1, max_length=MAX_POSITIONS)

    @model_validator(mode="after")
    def _check(self) -> Self:
        where = [one.position for one in self.positions]
        if any(after <= before for before, after in pairwise(where)) or where[-1] >= len(self.token_ids):
            raise ValueError("positions are not ascending, or beyond the prompt")
        return self

    @classmethod
    def read(cls, folder: Path) -> ReferenceLogits | None:
        """An artifact folder's, or None where it has none.

        Raises:
            ArtifactError: unreadable or malformed.
        """
        file = folder / REFERENCE_LOGITS
        try:
            if not file.exists():
                return None
            return cls.model_validate(strict_json.read(file, limit=_MAX_BYTES))
        except ValidationError as error:
            first = error.errors()[0]
            raise ArtifactError(
                f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}", remedy="Convert the checkpoint again."
            ) from error

    def to_bytes(self) -> bytes:
        """The file's content, a line a position."""
        lines = ",\n    ".join(position.model_dump_json() for position in self.positions)
        ids = ",".join(map(str, self.token_ids))
        head = f'  "schema_version": {self.schema_version},\n  "source": "{self.source}",\n  "token_ids": [{ids}],'
        return f'{{\n{head}\n  "positions": [\n    {lines}\n  ]\n}}\n'.encode()
