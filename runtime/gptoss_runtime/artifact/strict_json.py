"""Reads JSON of somebody else's, an artifact's files and a request's body, as every parser reads it, or not at all.

Several programs may read it: where an object has a key twice, Python takes the last value and others the first or both;
a number too large is infinite here and an error there. What it says then depends on who reads it, so it is refused.
Knows JSON; knows nothing of what it says.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from gptoss_runtime.errors import ArtifactError

MAX_BYTES = 64 * 2**20  # gpt-oss's tokenizer.json has 27 MB
_REMEDY = "Convert the checkpoint again, or copy the whole folder again."


def read(path: Path, *, limit: int = MAX_BYTES) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.
        limit: bytes that it may have.

    Raises:
        ArtifactError: the file is missing, unreadable or too large, or as for :func:`parse`.
    """
    return parse(read_bytes(path, limit=limit), path)


def read_bytes(path: Path, *, limit: int = MAX_BYTES) -> bytes:
    """A JSON file's bytes. Args as for :func:`read`.

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
    """A JSON object from a file's bytes.

    Args:
        data: UTF-8, with or without a byte order mark.
        path: the file, for messages.

    Raises:
        ArtifactError: not an object, or as for :func:`value_of`.
    """
    value = value_of(data, path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} does not hold a JSON object", remedy=_REMEDY)
    return value


def value_of(data: bytes, path: Path) -> Any:
    """Any JSON value from a file's bytes. Args as for :func:`parse`.

    Raises:
        ArtifactError: not JSON; a key is there twice in one object; or a number is NaN or infinite.
    """
    try:
        return loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}", remedy=_REMEDY) from error


def loads(data: bytes) -> Any:
    """Any JSON value.

    Args:
        data: UTF-8, with or without a byte order mark.

    Raises:
        ValueError: not UTF-8 (UnicodeDecodeError), not JSON, a key that is there twice in one object, or a number that
            is NaN, infinite or beyond a float.
        RecursionError: nested too deeply.
    """
    return json.loads(
        data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
