"""Finds where an ONNX file says its weights are, without the onnx package.

An ONNX model names its external files itself, so opening an untrusted artifact means reading those names first. This
is a reader of the few protobuf fields on the way to them, over a memory map: it never copies weights. Knows the wire
format and ONNX's field numbers; knows nothing of artifacts.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# message -> {field: message it holds}; the paths from ModelProto to every TensorProto (onnx.proto, IR version 11)
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_MAX_DEPTH = 64  # subgraphs in subgraphs: real models have two


@dataclass(frozen=True, slots=True)
class ExternalSpan:
    """Bytes of another file that hold a tensor; ``length`` 0 means up to its end."""

    location: str
    offset: int = 0
    length: int = 0


def external_spans(model: Path) -> set[ExternalSpan]:
    """The external data that an ONNX file refers to.

    Args:
        model: the ``.onnx`` file.

    Raises:
        ValueError: it is not a readable ONNX file.
    """
    if model.stat().st_size == 0:
        raise ValueError("the file is empty")
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return set(_walk(data, 0, len(data), "Model", 0))
        except IndexError as error:
            raise ValueError("the file is truncated") from error


def _walk(data: mmap.mmap, start: int, end: int, message: str, depth: int) -> Iterator[ExternalSpan]:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs are nested too deeply")
    children = _CHILDREN[message]
    entries: dict[str, str] = {}
    for field, begin, stop in _fields(data, start, end):
        child = children.get(field)
        if child == "Entry":
            pair = {number: data[at:to].decode("utf-8") for number, at, to in _fields(data, begin, stop)}
            entries[pair.get(1, "")] = pair.get(2, "")
        elif child is not None:
            yield from _walk(data, begin, stop, child, depth + 1)
    if entries:
        yield ExternalSpan(entries.get("location", ""), int(entries.get("offset", 0)), int(entries.get("length", 0)))


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The length-delimited fields of a message: number, first byte, one past the last."""
    at = start
    while at < end:
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _varint(data, at)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == 2:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("the file is truncated")
            yield field, at, at + length
            at += length
        else:
            raise ValueError("the file is not ONNX")
    if at != end:
        raise ValueError("the file is truncated")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("the file is not ONNX")
