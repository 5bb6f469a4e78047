"""reference_logits.json: logits of an artifact's own graph for a fixed prompt, to compare other devices with.

The converter computes them on the CPU from the same quantised weights, so a difference comes from the device and not
from quantisation. Knows the file and its checks; knows nothing of engines.
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
TOP = 32  # logits stored per position
MAX_POSITIONS = 64  # checking a position can take a prompt of its own
_MAX_BYTES = 1 << 20
_ROUNDING = 1e-3  # larger than the rounding error of values in the file


class TopLogits(BaseModel):
    """The largest logits of one position.

    Attributes:
        position: index of the token that the logits follow.
        token_ids: the most likely next tokens, most likely first.
        logits: their logits, descending.
        log_sum_exp: of all logits of the position: logits minus this are log-probabilities.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    position: int = Field(ge=0)
    token_ids: tuple[int, ...] = Field(min_length=1, max_length=TOP)
    logits: tuple[float, ...]
    log_sum_exp: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.token_ids) != len(self.logits):
            raise ValueError("the numbers of logits and token ids differ")
        if len(set(self.token_ids)) < len(self.token_ids) or min(self.token_ids) < 0:
            raise ValueError("token ids are duplicate or negative")
        if any(low > high for high, low in pairwise(self.logits)) or self.logits[0] > self.log_sum_exp + _ROUNDING:
            raise ValueError("logits are not descending, or exceed log_sum_exp")
        return self

    @property
    def margin(self) -> float:
        """The difference between the two largest logits, in nats."""
        return self.logits[0] - self.logits[1] if len(self.logits) > 1 else float("inf")

    @classmethod
    def from_logits(cls, position: int, logits: NDArray[np.float32]) -> TopLogits:
        """Selects the largest of a position's logits, float32 [vocab]."""
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
        """Returns the standard deviation of the differences to other logits over the stored tokens, in nats.

        A constant added to all logits does not change it. Unlike the divergence, it also shows errors at positions
        where the model is certain.

        Args:
            logits: finite, float32 [vocab].
        """
        moved = logits[list(self.token_ids)].astype(np.float64) - np.array(self.logits)
        return float(moved.std())

    def divergence(self, logits: NDArray[np.float32]) -> float:
        """Returns the Kullback-Leibler divergence of other logits from these, in nats.

        Computed over the stored tokens plus one class for all others, so it is a lower bound of the full divergence.

        Args:
            logits: finite, float32 [vocab].
        """
        wide = logits.astype(np.float64)
        highest = wide.max()
        theirs = wide[list(self.token_ids)] - highest - np.log(np.exp(wide - highest).sum())
        ours = np.array(self.logits) - self.log_sum_exp
        p, q = (np.append(np.exp(x), max(1e-12, 1 - float(np.exp(x).sum()))) for x in (ours, theirs))
        p, q = (np.maximum(x / x.sum(), 1e-300) for x in (p, q))
        return max(0.0, float((p * (np.log(p) - np.log(q))).sum()))


class ReferenceLogits(BaseModel):
    """A prompt and the logits that the CPU computed for it.

    Attributes:
        source: "cpu": the converter ran the artifact's own graph on the CPU.
        token_ids: the prompt.
        positions: the stored positions, ascending.
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
            raise ValueError("positions are not ascending, or are beyond the prompt")
        return self

    @classmethod
    def read(cls, folder: Path) -> ReferenceLogits | None:
        """Reads the file of an artifact folder; returns None if there is none.

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
        """Returns the file's content, with one position per line."""
        lines = ",\n    ".join(position.model_dump_json() for position in self.positions)
        ids = ",".join(map(str, self.token_ids))
        head = f'  "schema_version": {self.schema_version},\n  "source": "{self.source}",\n  "token_ids": [{ids}],'
        return f'{{\n{head}\n  "positions": [\n    {lines}\n  ]\n}}\n'.encode()
