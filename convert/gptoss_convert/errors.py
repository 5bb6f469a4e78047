"""The converter's branch of the error tree, whose root and exit codes are in gptoss_runtime.errors.

GptOssError
└── ConversionError          exit 3    a conversion that cannot go on; nothing half-written is left behind
    ├── CheckpointError      exit 3    the input: missing or truncated shard, wrong shape or dtype, unsafe index
    │   └── UnsupportedModel exit 3    a config.json of another architecture, or of dimensions no kernel takes
    ├── WorkflowError        exit 3    the Olive config or the Olive run
    ├── MemoryLimit          exit 3    what --max-memory allows is too little
    ├── RangeError           exit 3    a layer's activations leave the float type of the target
    └── OutputError          exit 5    the output folder: not writable, disk full
        └── OutputExists     exit 5    something is already there and overwriting was not asked for
"""

from __future__ import annotations

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


class OutputError(ConversionError):
    """The output folder cannot be written."""

    exit_code = 5

    def __init__(
        self, message: str, *, remedy: str = "Give a folder that you may write to, on a disk with room."
    ) -> None:
        super().__init__(message, remedy=remedy)


class OutputExists(OutputError):
    """Something is already at the output path."""
