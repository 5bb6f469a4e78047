"""How each group of tensors is stored: the values of the ``quantisation`` setting in olive_configs/.

Knows names and presets; knows nothing of weights. A scheme is given as its type ("int8", "mxfp4", "bfloat16") or in
full ({"type": "int4", "block_size": 64}).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gptoss_convert.errors import WorkflowError

Group = Literal["embedding", "attention", "router", "experts", "lm_head"]
GROUPS: tuple[Group, ...] = ("embedding", "attention", "router", "experts", "lm_head")
SchemeType = Literal["float32", "bfloat16", "float16", "int8", "int4", "mxfp4"]


class Scheme(BaseModel):
    """How one tensor group is stored.

    Attributes:
        type: a float type, a block-quantised integer type, or mxfp4 (experts only).
        block_size: number of weights that share a scale, for int4 and int8.
        accuracy_level: type to which MatMulNBits may round activations: 1: float32, 4: int8.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: SchemeType
    block_size: Literal[16, 32, 64, 128] = 32
    accuracy_level: Literal[1, 4] = 1

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: object) -> object:
        return {"type": value} if isinstance(value, str) else value

    @property
    def bits(self) -> int:
        """4 or 8 for the integer types."""
        return {"int4": 4, "int8": 8}[self.type]

    @property
    def is_integer(self) -> bool:
        """True for the block-quantised integer types."""
        return self.type in ("int4", "int8")

    def __str__(self) -> str:
        return f"{self.type} block {self.block_size}" if self.is_integer else self.type


class Quantisation(BaseModel):
    """A scheme for every tensor group. Norms, biases and sinks always have a float type."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedding: Scheme
    attention: Scheme
    router: Scheme
    experts: Scheme
    lm_head: Scheme

    @model_validator(mode="after")
    def _mxfp4_is_for_experts(self) -> Quantisation:
        for group in GROUPS:
            if group != "experts" and getattr(self, group).type == "mxfp4":
                raise ValueError(f"{group} cannot be mxfp4: only experts can")
        return self


def require_whole_blocks(group: str, scheme: Scheme, columns: int) -> None:
    """Checks that a matrix's rows divide into blocks.

    Args:
        group: tensor group, for the error.
        scheme: how the matrix is stored.
        columns: length of a row.

    Raises:
        WorkflowError: the rows don't.
    """
    if columns % scheme.block_size:
        raise WorkflowError(
            f"{group}: rows of {columns} weights do not divide into blocks of {scheme.block_size}",
            remedy="Choose a block_size that divides the row; 32 always does.",
        )


def resolve(
    presets: Mapping[str, Mapping[Group, Any]], preset: str, overrides: Mapping[str, Any] | None = None
) -> Quantisation:
    """Applies the user's changes to a target's preset.

    Args:
        presets: the target's named presets.
        preset: one of their names.
        overrides: scheme by group, from the Olive config.

    Raises:
        WorkflowError: no such preset, group or scheme.
    """
    if preset not in presets:
        raise WorkflowError(f"no preset {preset!r}", remedy=f"This target has: {', '.join(presets)}.")
    try:
        return Quantisation.model_validate({**presets[preset], **(overrides or {})})
    except ValidationError as error:
        details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise WorkflowError(
            f"quantisation: {details}", remedy=f"Groups are {', '.join(GROUPS)}; see docs/conversion.md for schemes."
        ) from error
