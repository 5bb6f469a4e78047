"""The converter's branch of the error tree, whose root and exit codes are in gptoss_runtime.errors.

GptOssError
└── ConversionError          exit 3    a conversion that cannot go on; nothing half-written is left behind
    ├── CheckpointError      exit 3    the input: missing or truncated shard, wrong shape or dtype, unsafe index
    │   └── UnsupportedModel exit 3    a config.json of another architecture, or of dimensions no kernel takes
    ├── WorkflowError        exit 3    the Olive config or the Olive run
    ├── MemoryLimit          exit 3    what --max-memory allows is too little
    ├── RangeError           exit 3    a layer's activations leave the float type of the target
    ├── ReferenceFileError   exit 3    saved reference logits: damaged, of another version, or without what is asked for
    ├── ParityError          exit 9    an artifact does not compute what its reference does
    │   ├── NotFinite        exit 9    a logit of it is infinite or not a number
    │   └── TooFar           exit 9    its mean divergence is above --max-kl
    └── OutputError          exit 5    the output folder: not writable, disk full
        └── OutputExists     exit 5    something is already there and overwriting was not asked for
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
    """Another architecture, or dimensions that no kernel takes."""


class WorkflowError(ConversionError):
    """The Olive configuration is wrong, or Olive failed."""


class MemoryLimit(ConversionError):
    """What the caller allows is too little."""


class RangeError(ConversionError):
    """A layer's activations leave the range of the target's float type, or are not numbers; names the layer."""


class ReferenceFileError(ConversionError):
    """A file of saved reference logits cannot be used; names the file."""


class ParityError(ConversionError):
    """An artifact does not compute what its reference does."""

    exit_code = 9

    def figures(self) -> dict[str, Any]:
        """For JSON: the error's name, its message and what else it knows."""
        return {"type": type(self).__name__, "message": self.message, "remedy": self.remedy}


class NotFinite(ParityError):
    """A logit of an artifact is infinite or not a number.

    Args:
        path: "prefill" or "steps".
        sequence: index of the sequence.
        position: index of the token after which it is.
        layer: after how many layers hidden states are not finite either; None: they are, or nobody looked.
    """

    def __init__(self, *, path: str, sequence: int, position: int, layer: int | None = None) -> None:
        way = "prefill" if path == "prefill" else "step by step"
        text = f"logits are not finite after token {position} of sequence {sequence}, {way}"
        if layer is not None:
            text += f"; hidden states are not after {layer} layers"
        super().__init__(text, remedy="Do not use this artifact; gptoss parity --layers shows where it begins.")
        self.where = {"path": path, "sequence": sequence, "position": position, "layers": layer}

    def figures(self) -> dict[str, Any]:
        """As every ParityError's, with where it is."""
        return super().figures() | self.where


class TooFar(ParityError):
    """The mean divergence from the reference is above what was allowed.

    Args:
        mean_kl: it is.
        allowed: it may be; nats.
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
    """Something is already at the output path."""
