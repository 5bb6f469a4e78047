"""Reads an ONNX file without the onnx package: where its weights are, and whether it is nothing but arithmetic.

An ONNX model names its external files and its operators itself, so loading one that somebody else made means reading
those names first. This is a reader of onnx.proto's messages; it never copies weights. It is stricter than protobuf: a
field that it does not know, or that is there twice where one belongs, is refused, because another reader might find
something there. Knows the wire format, ONNX's field numbers and what onnxruntime acts on; knows nothing of artifacts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gptoss_runtime.artifact.onnx_fields import FIELDS, REPEATED

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
# Operators of com.microsoft that hold or name what a provider or an interpreter would run
_FOREIGN = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "TritonOp", "Snpe"})
_CONFIGURATION = (
    "ort_config"  # metadata that onnxruntime takes for session options, where ORT_LOAD_CONFIG_FROM_MODEL is set
)
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})  # others place packed weights, unchecked
_NUMBER = re.compile(r"-?[0-9]{1,19}")
_MAX_FIELDS = 500_000  # gpt-oss-120b's graph has some 12,000; to read so many takes half a second
_MAX_DEPTH = 64  # messages in messages: a graph in a graph takes three
_ORT_FORMAT = b"ORTM"  # at byte 4: onnxruntime would read the file as its own format instead


class GraphError(ValueError):
    """The file is readable and holds what an artifact must not; the text says what."""


@dataclass(frozen=True, slots=True)
class ExternalSpan:
    """Bytes of another file that hold a tensor; ``length`` 0 means up to its end."""

    location: str
    offset: int = 0
    length: int = 0


def external_spans(data: bytes) -> frozenset[ExternalSpan]:
    """Checks an ONNX file, and finds the external data that it refers to.

    Args:
        data: the file's bytes, as they are loaded afterwards.

    Raises:
        GraphError: it has operators of domains that are not ai.onnx or com.microsoft, compiled nodes (EPContext), a
            training graph, settings of onnxruntime's, or tensors that lie elsewhere than in a file.
        ValueError: it is not a readable ONNX file.
    """
    if not data:
        raise ValueError("the file is empty")
    if data[4:8] == _ORT_FORMAT:
        raise GraphError("it is in onnxruntime's own format, not in ONNX's")
    reader = _Reader(data)
    try:
        reader.message(0, len(data), "Model", 0)
    except IndexError as error:
        raise ValueError("the file is truncated") from error
    return frozenset(reader.spans)


class _Reader:
    """Walks every message of a file once; the fields it may meet are counted, so that its work is bounded."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.spans: set[ExternalSpan] = set()
        self._left = _MAX_FIELDS

    def message(self, start: int, end: int, kind: str, depth: int) -> None:
        """Checks a message and what is in it."""
        if depth > _MAX_DEPTH:
            raise ValueError("graphs are nested too deeply")
        fields = FIELDS[kind]
        seen: set[int] = set()
        texts: dict[str, str] = {}
        entries: dict[str, str] = {}
        for number, at, to in self._fields(start, end):
            name, inner = fields.get(number, (None, ""))
            if name is None:
                raise ValueError(f"the file is not ONNX as of IR version 11: a field {number} in {kind}")
            if number in seen and name not in REPEATED[kind]:
                raise ValueError(f"{kind}.{name} is there twice")
            seen.add(number)
            if inner and at < 0:
                raise ValueError(f"the file is not ONNX: {kind}.{name} is a number")
            if inner == "text":
                texts[name] = self._text(at, to)
            elif inner == "Entry":
                key, value = self._entry(at, to)
                if key in entries and name == "external_data":
                    raise ValueError(f"external data says {key!r} twice")
                if name == "external_data":
                    entries[key] = value
                elif key == _CONFIGURATION:
                    raise GraphError(f"its metadata has {key!r}, which onnxruntime can take for settings of its own")
            elif inner == "Training":
                raise GraphError("it has a training graph")
            elif inner:
                self.message(at, to, inner, depth + 1)
        _check(kind, texts)
        if entries:
            self.spans.add(_span(entries))

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        pair: dict[int, str] = {}
        for number, at, to in self._fields(start, end):
            if number not in (1, 2) or number in pair:
                raise ValueError("the file is not ONNX: an entry is more than key and value")
            pair[number] = self._text(at, to)
        return pair.get(1, ""), pair.get(2, "")

    def _text(self, at: int, to: int) -> str:
        if at < 0:
            raise ValueError("the file is not ONNX: an entry has a number")
        return self.data[at:to].decode("utf-8")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The fields of a message: number, and first byte and one past the last; -1 for those that are numbers."""
        data, at = self.data, start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"the graph has more than {_MAX_FIELDS:,} parts")
            key, at = _varint(data, at, 5)
            number, wire = key >> 3, key & 7
            if wire == 2:
                length, at = _varint(data, at, 5)
                if at + length > end:
                    raise ValueError("the file is truncated")
                yield number, at, at + length
                at += length
                continue
            if wire == 0:
                _, at = _varint(data, at, 10)
            elif wire == 1:
                at += 8
            elif wire == 5:
                at += 4
            else:
                raise ValueError("the file is not ONNX")
            yield number, -1, -1
        if at != end:
            raise ValueError("the file is truncated")


def _check(kind: str, texts: dict[str, str]) -> None:
    """Whether operators are those of the two domains that are data to onnxruntime."""
    if kind in ("Node", "Function", "Opset"):
        domain = texts.get("domain", "")
        if domain not in DOMAINS:
            what = {"Node": "an operator", "Function": "a function", "Opset": "an import"}[kind]
            raise GraphError(f"it has {what} of the domain {domain[:80]!r}: only ai.onnx and com.microsoft are loaded")
    if kind == "Node" and texts.get("op_type") in _FOREIGN:
        raise GraphError(f"it has a node {texts['op_type']}, which holds or names code")


def _span(entries: dict[str, str]) -> ExternalSpan:
    if unknown := sorted(entries.keys() - _EXTERNAL_KEYS):
        raise GraphError(f"its external data says {unknown[0][:80]!r}")
    numbers = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        raise ValueError(f"external data has an offset or a length of {numbers!r}"[:200])
    return ExternalSpan(entries.get("location", ""), int(numbers[0]), int(numbers[1]))


def _varint(data: bytes, at: int, most: int) -> tuple[int, int]:
    """A number and where it ends; longer ones than protobuf takes, or in more bits, are read differently elsewhere."""
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for index in range(1, most):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value >> (32 if most == 5 else 64):
                break
            return value, at
    raise ValueError("the file is not ONNX")
