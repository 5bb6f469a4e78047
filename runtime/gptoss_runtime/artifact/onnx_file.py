"""Reads an ONNX file without the onnx package: finds its external data, and checks that the graph only computes.

An ONNX model names its external files and its operators, so those names must be checked before a model from somebody
else is loaded. This reader parses the messages of onnx.proto and never copies weights. It is stricter than protobuf:
unknown fields and repeated singular fields are errors, because another parser might interpret them differently. Knows
the wire format, ONNX's field numbers and what onnxruntime acts on; knows nothing of artifacts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gptoss_runtime.artifact.onnx_fields import FIELDS, REPEATED

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
# Operators of com.microsoft that contain or name code for a provider or an interpreter
_CODE_OPERATORS = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "TritonOp", "Snpe"})
_ORT_CONFIG_KEY = "ort_config"  # metadata that onnxruntime reads as session options if ORT_LOAD_CONFIG_FROM_MODEL=1
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})  # others are for prepacked weights
_NUMBER = re.compile(r"-?[0-9]{1,19}")
_MAX_FIELDS = 500_000  # takes half a second to read; gpt-oss-120b's graph has about 12,000
_MAX_DEPTH = 64  # nested messages; a subgraph takes three levels
_ORT_FORMAT = b"ORTM"  # at byte 4, this makes onnxruntime read the file in its own format


class GraphError(ValueError):
    """The file is readable but contains something that an artifact must not; the message says what."""


@dataclass(frozen=True, slots=True)
class ExternalSpan:
    """The bytes of a tensor in an external data file; ``length`` 0 means up to the end of the file."""

    location: str
    offset: int = 0
    length: int = 0


def find_external_data(data: bytes) -> frozenset[ExternalSpan]:
    """Checks an ONNX file and returns the external data that it refers to.

    Args:
        data: the file's bytes, exactly as they will be loaded.

    Raises:
        GraphError: it contains operators of other domains than ai.onnx and com.microsoft, compiled nodes (EPContext), a
            training graph, onnxruntime settings, or external data keys other than those of a plain file.
        ValueError: it is not a readable ONNX file.
    """
    if not data:
        raise ValueError("the file is empty")
    if data[4:8] == _ORT_FORMAT:
        raise GraphError("it is in onnxruntime's own format, not in ONNX format")
    reader = _Reader(data)
    try:
        reader.read_message(0, len(data), "Model", 0)
    except IndexError as error:
        raise ValueError("the file is truncated") from error
    return frozenset(reader.spans)


class _Reader:
    """Reads every message of a file once; a limit on the number of fields bounds the work."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.spans: set[ExternalSpan] = set()
        self._left = _MAX_FIELDS

    def read_message(self, start: int, end: int, kind: str, depth: int) -> None:
        """Checks a message and the messages in it."""
        if depth > _MAX_DEPTH:
            raise ValueError("graphs are nested too deeply")
        fields = FIELDS[kind]
        seen: set[int] = set()
        texts: dict[str, str] = {}
        entries: dict[str, str] = {}
        for number, at, to in self._fields(start, end):
            name, inner = fields.get(number, (None, ""))
            if name is None:
                raise ValueError(f"the file is not ONNX of IR version 11 or earlier: unknown field {number} in {kind}")
            if number in seen and name not in REPEATED[kind]:
                raise ValueError(f"duplicate field {kind}.{name}")
            seen.add(number)
            if inner and at < 0:
                raise ValueError(f"the file is not ONNX: {kind}.{name} is a number")
            if inner == "text":
                texts[name] = self._read_text(at, to)
            elif inner == "Entry":
                key, value = self._read_entry(at, to)
                if key in entries and name == "external_data":
                    raise ValueError(f"duplicate key {key!r} in external data")
                if name == "external_data":
                    entries[key] = value
                elif key == _ORT_CONFIG_KEY:
                    raise GraphError(f"its metadata has {key!r}, which onnxruntime can read as session options")
            elif inner == "Training":
                raise GraphError("it has a training graph")
            elif inner:
                self.read_message(at, to, inner, depth + 1)
        _check_operator(kind, texts)
        if entries:
            self.spans.add(_parse_span(entries))

    def _read_entry(self, start: int, end: int) -> tuple[str, str]:
        pair: dict[int, str] = {}
        for number, at, to in self._fields(start, end):
            if number not in (1, 2) or number in pair:
                raise ValueError("the file is not ONNX: an entry is more than key and value")
            pair[number] = self._read_text(at, to)
        return pair.get(1, ""), pair.get(2, "")

    def _read_text(self, at: int, to: int) -> str:
        if at < 0:
            raise ValueError("the file is not ONNX: an entry has a number")
        return self.data[at:to].decode("utf-8")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yields each field of a message as (number, start, end) in bytes; start and end are -1 for numbers."""
        data, at = self.data, start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"the graph has more than {_MAX_FIELDS:,} fields")
            key, at = _read_varint(data, at, 5)
            number, wire = key >> 3, key & 7
            if wire == 2:
                length, at = _read_varint(data, at, 5)
                if at + length > end:
                    raise ValueError("the file is truncated")
                yield number, at, at + length
                at += length
                continue
            if wire == 0:
                _, at = _read_varint(data, at, 10)
            elif wire == 1:
                at += 8
            elif wire == 5:
                at += 4
            else:
                raise ValueError("the file is not ONNX")
            yield number, -1, -1
        if at != end:
            raise ValueError("the file is truncated")


def _check_operator(kind: str, texts: dict[str, str]) -> None:
    """Checks that an operator is from one of the two domains that onnxruntime implements itself."""
    if kind in ("Node", "Function", "Opset"):
        domain = texts.get("domain", "")
        if domain not in DOMAINS:
            what = {"Node": "an operator", "Function": "a function", "Opset": "an import"}[kind]
            raise GraphError(f"it has {what} of the domain {domain[:80]!r}; only ai.onnx and com.microsoft are allowed")
    if kind == "Node" and texts.get("op_type") in _CODE_OPERATORS:
        raise GraphError(f"it has a node {texts['op_type']}, which contains or names code")


def _parse_span(entries: dict[str, str]) -> ExternalSpan:
    if unknown := sorted(entries.keys() - _EXTERNAL_KEYS):
        raise GraphError(f"its external data has the unknown key {unknown[0][:80]!r}")
    numbers = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(_NUMBER.fullmatch(number) for number in numbers):
        raise ValueError(f"external data has an offset or a length of {numbers!r}"[:200])
    return ExternalSpan(entries.get("location", ""), int(numbers[0]), int(numbers[1]))


def _read_varint(data: bytes, at: int, max_bytes: int) -> tuple[int, int]:
    """Returns a number and the position after it; rejects overlong numbers, which other parsers read differently."""
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for index in range(1, max_bytes):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value >> (32 if max_bytes == 5 else 64):
                break
            return value, at
    raise ValueError("the file is not ONNX")
