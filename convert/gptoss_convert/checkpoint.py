"""A gpt-oss checkpoint on disk, read lazily and checked before a single weight is touched.

Knows the Hugging Face layout of openai/gpt-oss-20b: config.json, safetensors shards with an optional index, and the
name, shape and dtype of every tensor. Knows nothing about ONNX, quantisation or what the tensors are for.

Tensors are read on request, whole or by rows. They are not mapped: if another program truncates a shard, a read fails
with an error where a mapping would end the process, and memory holds only what was requested.
Headers are parsed here and not by the safetensors library: its numpy interface has no bfloat16 (0.8) and no offsets,
and its errors name neither the damaged tensor nor its position.
Format: https://huggingface.co/docs/safetensors, https://huggingface.co/openai/gpt-oss-20b.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gptoss_convert.config import GptOssConfig
from gptoss_convert.errors import CheckpointError

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "U8": np.dtype(np.uint8),
}
FLOATS = ("BF16", "F16", "F32")
_MAX_HEADER = 100 << 20  # the limit that the safetensors library itself sets
_REDOWNLOAD = "Download that file again; a checkpoint is usable only when every shard is whole."


@dataclass(frozen=True)
class StoredTensor:
    """Location, dtype and shape of one tensor; nothing is read until :meth:`array` is called."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    def array(self, start: int = 0, end: int | None = None) -> np.ndarray[Any, np.dtype[Any]]:
        """Reads the tensor, or rows ``start`` to ``end`` of its first axis.

        Returns:
            Array of :attr:`shape`, or of fewer rows; bfloat16 is ``ml_dtypes.bfloat16``.

        Raises:
            CheckpointError: the file cannot be read, or became shorter after it was opened.
        """
        start, end, _ = slice(start, end).indices(self.shape[0]) if self.shape else (0, 1, 1)
        shape = (end - start, *self.shape[1:]) if self.shape else ()
        row = self.nbytes // max(1, self.shape[0] if self.shape else 1)
        result = np.empty(shape, DTYPES[self.dtype])
        try:
            with self.file.open("rb", buffering=0) as stream:
                stream.seek(self.offset + start * row)
                _read_into(stream, result.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise CheckpointError(f"{self.file}: cannot read {self.name}: {error}", remedy=_REDOWNLOAD) from error
        return result


class Checkpoint:
    """An open checkpoint folder.

    Attributes:
        path: the folder.
        config: its config.json, checked.
        tensors: all tensors by name.
    """

    def __init__(self, path: Path, config: GptOssConfig, tensors: Mapping[str, StoredTensor]) -> None:
        self.path = path
        self.config = config
        self.tensors = tensors

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Opens and checks a folder.

        Args:
            path: folder with config.json and ``*.safetensors``.

        Raises:
            UnsupportedModel: config.json describes another architecture.
            CheckpointError: a file is missing, truncated, unreadable, outside the folder, or holds a tensor of the
                wrong name, shape or dtype.
        """
        path = Path(path)
        try:
            found, why = path.is_dir(), "no such folder"
        except OSError as error:  # such as a parent folder without search permission
            found, why = False, error.strerror or str(error)
        if not found:
            raise CheckpointError(
                f"{path}: {why}", remedy="Give the folder that holds config.json and the *.safetensors files."
            )
        config = GptOssConfig.read(path)
        tensors = {tensor.name: tensor for file in list_shards(path) for tensor in read_header(file)}
        checkpoint = cls(path, config, tensors)
        checkpoint._check()
        return checkpoint

    @property
    def has_mxfp4_experts(self) -> bool:
        """True where the experts are MXFP4 (as published), False where they are floats (fine-tunes)."""
        return "model.layers.0.mlp.experts.gate_up_proj_blocks" in self.tensors

    @property
    def files(self) -> list[Path]:
        """The shards in use, sorted by name."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    def array(self, name: str, start: int = 0, end: int | None = None) -> np.ndarray[Any, np.dtype[Any]]:
        """The named tensor in its stored dtype, whole or some rows of its first axis."""
        return self.tensors[name].array(start, end)

    def concatenate(
        self, names: Sequence[str], start: int = 0, end: int | None = None
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Reads several tensors, concatenated along the first axis.

        Args:
            names: of the tensors.
            start: first row of the result to read.
            end: row after the last one; ``None``: all rows.

        Returns:
            Array in the stored dtype, [end - start, ...].
        """
        parts, before = [], 0
        for name in names:
            tensor = self.tensors[name]
            first, last = max(start - before, 0), tensor.shape[0] if end is None else min(end - before, tensor.shape[0])
            if first < last:
                parts.append(tensor.array(first, last))
            before += tensor.shape[0]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _check(self) -> None:
        for name, shape, dtypes in expected_tensors(self.config, mxfp4=self.has_mxfp4_experts):
            tensor = self.tensors.get(name)
            if tensor is None:
                raise CheckpointError(
                    f"{self.path}: tensor {name} is missing from {len(self.files)} shard(s)",
                    remedy="A shard is missing or the checkpoint is of another model. " + _REDOWNLOAD,
                )
            if tensor.shape != shape or tensor.dtype not in dtypes:
                raise CheckpointError(
                    f"{tensor.file}: {name} is {tensor.dtype} {list(tensor.shape)}, "
                    f"but config.json calls for {' or '.join(dtypes)} {list(shape)}",
                    remedy="config.json and the weights are of different models; take both from the same revision.",
                )


def _read_into(stream: RawIOBase, data: memoryview) -> None:
    """Fills ``data``; a single read on Linux returns at most 2 GB."""
    done = 0
    while done < len(data):
        count = stream.readinto(data[done:])
        if not count:
            raise OSError(f"the file ends {len(data) - done} bytes too early")
        done += count


def expected_tensors(config: GptOssConfig, *, mxfp4: bool) -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    """Yields (name, shape, allowed safetensors dtypes) of every tensor that a gpt-oss checkpoint must hold.

    Args:
        config: the dimensions.
        mxfp4: whether experts are ``*_blocks`` and ``*_scales``, not floats.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    query, kv = heads * config.head_dim, config.num_key_value_heads * config.head_dim
    experts, inner = config.num_local_experts, config.intermediate_size
    yield "model.embed_tokens.weight", (config.vocab_size, hidden), FLOATS
    yield "model.norm.weight", (hidden,), FLOATS
    yield "lm_head.weight", (config.vocab_size, hidden), FLOATS
    for layer in range(config.num_hidden_layers):
        p = f"model.layers.{layer}."
        yield p + "input_layernorm.weight", (hidden,), FLOATS
        yield p + "post_attention_layernorm.weight", (hidden,), FLOATS
        for name, rows, columns in (("q", query, hidden), ("k", kv, hidden), ("v", kv, hidden), ("o", hidden, query)):
            yield f"{p}self_attn.{name}_proj.weight", (rows, columns), FLOATS
            yield f"{p}self_attn.{name}_proj.bias", (rows,), FLOATS
        yield p + "self_attn.sinks", (heads,), FLOATS
        yield p + "mlp.router.weight", (experts, hidden), FLOATS
        yield p + "mlp.router.bias", (experts,), FLOATS
        for name, rows, columns in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
            e = f"{p}mlp.experts.{name}"
            yield e + "_bias", (experts, rows), FLOATS
            if mxfp4:
                yield e + "_blocks", (experts, rows, columns // 32, 16), ("U8",)
                yield e + "_scales", (experts, rows, columns // 32), ("U8",)
            else:  # transformers stores unquantised experts as [E, in, out]
                yield e, (experts, columns, rows), FLOATS


def list_shards(path: Path) -> list[Path]:
    """Lists the safetensors files of a checkpoint: those in the index if there is one, else all in the folder.

    Raises:
        CheckpointError: the index is malformed or names a file that is missing or lies outside the folder.
    """
    index = path / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise CheckpointError(
                f"{path}: no *.safetensors file", remedy="Download the weights, not only the configs."
            )
        return files
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise CheckpointError(f"{index}: not a safetensors index ({error!r})", remedy=_REDOWNLOAD) from error
    files = []
    for name in names:
        # A name with a folder could refer to any file on the machine, and no published checkpoint has one.
        if not isinstance(name, str) or not _is_plain_name(name):
            raise CheckpointError(
                f"{index}: names {name!r}, which is not a file in this folder",
                remedy="Don't use this checkpoint unless you trust the author of that index.",
            )
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name}: missing, but named by {index.name}", remedy=_REDOWNLOAD)
        files.append(path / name)
    return files


def _is_plain_name(name: str) -> bool:
    """Whether a name refers to a file in its own folder, also on Windows: no separator, drive or stream."""
    return Path(name).name == name and not set(name) & set("/\\:\0") and name not in ("", ".", "..")


def read_header(file: Path) -> list[StoredTensor]:
    """Reads the header of one safetensors file and checks it against the file's size.

    Raises:
        CheckpointError: not a safetensors file, truncated, or a tensor whose shape doesn't match its bytes.
    """

    def broken(why: str) -> CheckpointError:
        return CheckpointError(f"{file}: {why}", remedy=_REDOWNLOAD)

    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise broken(f"truncated or not safetensors: a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        tensors = [_parse_entry(file, 8 + length, name, entry) for name, entry in entries]
    except OSError as error:
        raise broken(str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise broken(f"malformed safetensors header ({error!r})") from error
    for tensor in tensors:
        if tensor.offset + tensor.nbytes > size:
            raise broken(f"truncated: {tensor.name} ends at byte {tensor.offset + tensor.nbytes}, the file at {size}")
    return tensors


def _parse_entry(file: Path, base: int, name: str, entry: Mapping[str, Any]) -> StoredTensor:
    dtype, shape, (start, end) = str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), entry["data_offsets"]
    # Tensors that the model doesn't need may have other dtypes; expected_tensors lists those of the others.
    itemsize = DTYPES[dtype].itemsize if dtype in DTYPES else None
    if start < 0 or end < start or any(n < 0 for n in shape):
        raise ValueError(f"{name}: invalid offsets or shape")
    if itemsize is not None and math.prod(shape) * itemsize != end - start:
        raise ValueError(f"{name}: {end - start} bytes for {dtype} {list(shape)}")
    return StoredTensor(name, dtype, shape, file, base + start, end - start)
