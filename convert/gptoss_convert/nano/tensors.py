"""Reads and writes nano's safetensors files without torch or ml_dtypes.

Tensors are numpy arrays; a bfloat16 tensor is a uint16 array of the same bits.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.errors import CheckpointError

_TYPES: dict[str, type[np.generic]] = {"BF16": np.uint16, "U8": np.uint8, "I32": np.int32}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}


def read(path: Path) -> dict[str, NDArray[Any]]:
    """Reads all tensors of a file.

    Raises:
        CheckpointError: the file does not exist, is damaged, or has a type other than BF16, U8 and I32.
    """
    try:
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        found = {}
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                flat = np.frombuffer(data[start + first : start + last], _TYPES[entry["dtype"]])
                found[name] = flat.reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file: {error!r}", remedy="Restore the file."
        ) from error
    return found


def write(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Writes tensors in order of name; the same tensors give the same bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in sorted(tensors.items()):
        span = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in sorted(tensors.items()):
            file.write(np.ascontiguousarray(tensor).data)
