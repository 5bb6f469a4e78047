"""Reads untrusted JSON (an artifact's files, a request's body) and rejects what JSON parsers disagree on.

For a duplicate key, Python uses the last value and other parsers the first or both; a number that is too large is
infinite for one parser and an error for another. Such a file means different things to different programs, so it is an
error here. Knows JSON syntax; knows nothing of the contents.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from gptoss_runtime.errors import ArtifactError

MAX_BYTES = 64 * 2**20  # the tokenizer.json of gpt-oss has 27 MB
_REMEDY = "Convert the checkpoint again, or copy the whole folder again."


def read(path: Path, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Args:
        path: the file.
        limit: maximum size in bytes.

    Raises:
        ArtifactError: the file is missing, unreadable or too large, or as for :func:`parse`.
    """
    return parse(read_bytes(path, limit=limit), path)


def read_bytes(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """Reads the bytes of a JSON file. Args as for :func:`read`.

    Raises:
        ArtifactError: the file is missing, unreadable or too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}", remedy=_REMEDY) from error
    if len(data) > limit:
        raise ArtifactError(f"{path} is larger than {limit >> 20} MB", remedy=_REMEDY)
    return data


def parse(data: bytes, path: Path) -> dict[str, Any]:
    """Parses a file's bytes as a JSON object.

    Args:
        data: UTF-8, with or without a byte order mark.
        path: the file, for messages.

    Raises:
        ArtifactError: not an object, or as for :func:`parse_value`.
    """
    value = parse_value(data, path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} does not contain a JSON object", remedy=_REMEDY)
    return value


def parse_value(data: bytes, path: Path) -> Any:
    """Parses a file's bytes as any JSON value. Args as for :func:`parse`.

    Raises:
        ArtifactError: not JSON, an object with a duplicate key, or a number that is NaN or infinite.
    """
    try:
        return loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}", remedy=_REMEDY) from error


def loads(data: bytes) -> Any:
    """Parses any JSON value.

    Args:
        data: UTF-8, with or without a byte order mark.

    Raises:
        ValueError: not UTF-8 (UnicodeDecodeError), not JSON, an object with a duplicate key, or a number that is NaN,
            infinite or too large for a float.
        RecursionError: nested too deeply.
    """
    return json.loads(
        data.decode("utf-8-sig"),
        object_pairs_hook=_build_object,
        parse_constant=_reject_constant,
        parse_float=_parse_finite,
    )


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice[:100]!r}")
    return found


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
