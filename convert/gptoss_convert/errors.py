"""The converter's branch of the error tree, whose root and exit codes are in gptoss_runtime.errors.

GptOssError
└── ConversionError            exit 3    a conversion that cannot go on; nothing half-written is left behind
    ├── CheckpointError        exit 3    the input: missing or truncated shard, wrong shape or dtype, unsafe index
    │   └── UnsupportedModel   exit 3    a config.json of another architecture, or with dimensions no kernel accepts
    ├── WorkflowError          exit 3    the Olive config or the Olive run
    ├── MemoryLimitTooLow      exit 3    the conversion needs more memory than --max-memory allows
    ├── RangeError             exit 3    a layer's activations leave the range of the target's float type
    ├── ReferenceFileError     exit 3    saved reference logits: damaged, of another version, or incomplete
    ├── ParityError            exit 9    an artifact does not compute what its reference does
    │   ├── NonFiniteLogits    exit 9    one of its logits is infinite or NaN
    │   └── DivergenceTooLarge exit 9    its mean divergence is above --max-kl
    └── OutputError            exit 5    the output folder: not writable, disk full, changed by another program
        └── OutputExists       exit 5    the output path is in use and --overwrite was not given
"""

from __future__ import annotations

from typing import Any

from gptoss_runtime.errors import GptOssError


class ConversionError(GptOssError):
    """A conversion that cannot go on; nothing half-written is left behind."""

    exit_code = 3


class CheckpointError(ConversionError):
    """The input folder is not a usable checkpoint; names the file."""


class UnsupportedModel(CheckpointError):
    """Another architecture, or dimensions that no kernel accepts."""


class WorkflowError(ConversionError):
    """The Olive configuration is wrong, or Olive failed."""


class MemoryLimitTooLow(ConversionError):
    """The conversion needs more memory than the caller allows."""


class RangeError(ConversionError):
    """A layer's activations leave the range of the target's float type, or are NaN; names the layer."""


class ReferenceFileError(ConversionError):
    """A file of saved reference logits cannot be used; names the file."""


class ParityError(ConversionError):
    """An artifact does not compute what its reference does."""

    exit_code = 9

    def figures(self) -> dict[str, Any]:
        """The error as JSON values: class name, message, remedy and, in subclasses, details."""
        return {"type": type(self).__name__, "message": self.message, "remedy": self.remedy}


class NonFiniteLogits(ParityError):
    """One of an artifact's logits is infinite or NaN.

    Args:
        path: "prefill" or "steps".
        sequence: index of the sequence.
        position: index of the token whose logits they are.
        layer: number of layers after which hidden states are not finite either; None: not measured, or finite.
    """

    def __init__(self, *, path: str, sequence: int, position: int, layer: int | None = None) -> None:
        way = "prefill" if path == "prefill" else "step by step"
        text = f"logits are not finite after token {position} of sequence {sequence}, {way}"
        if layer is not None:
            text += f"; hidden states are not after {layer} layers"
        super().__init__(text, remedy="Do not use this artifact; gptoss parity --layers shows where it begins.")
        self.where = {"path": path, "sequence": sequence, "position": position, "layers": layer}

    def figures(self) -> dict[str, Any]:
        """The error as JSON values, with its position."""
        return super().figures() | self.where


class DivergenceTooLarge(ParityError):
    """The mean divergence from the reference is above what was allowed.

    Args:
        mean_kl: measured, in nats.
        allowed: upper limit, in nats.
    """

    def __init__(self, mean_kl: float, allowed: float) -> None:
        text = f"mean KL is {mean_kl:.3g} nats, --max-kl {allowed:.3g}"
        super().__init__(text, remedy="Convert with a preset that keeps more, or look into --report and --layers.")


class OutputError(ConversionError):
    """The output folder cannot be written."""

    exit_code = 5

    def __init__(
        self, message: str, *, remedy: str = "Give a folder that you may write to, on a disk with room."
    ) -> None:
        super().__init__(message, remedy=remedy)


class OutputExists(OutputError):
    """The output path is already in use."""
