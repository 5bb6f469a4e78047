"""JSON schemas from clients: what would take too long to enforce, and the text that stands in a grammar.

llguidance compiles a schema in milliseconds, but some ways to combine keywords cost it minutes. Knows JSON Schema;
knows nothing of harmony or tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from gptoss_runtime.errors import InvalidRequest

_MAX_DEPTH = 100  # of nesting; llguidance's JSON reader ends at 128
_MAX_PROPERTIES = 2000  # in one object: the cost is their number squared
_MAX_PATTERN_PROPERTIES = 32  # in one object: each pair is checked
_MAX_MULTIPLE = 128  # least common multiple of all multipleOf, powers of ten apart: a state for each remainder
_MAX_MERGED_REGEXES = 8  # where schemas are intersected: the cost is exponential in them,
_MAX_MERGES = 24  # and in how deep that goes

_COMBINING = ("allOf", "anyOf", "oneOf", "$ref")
_COSTLY = ("pattern", "format", "patternProperties", "multipleOf")
# One space or one line break with its indentation between tokens: a model cannot get lost in white space.
_WRITING = {"whitespace_pattern": r"[ ]|\r?\n[ \t]{0,32}", "json_allow_general_unicode_escapes": True}


def check_bounds(schema: object) -> None:
    """Refuses what would take too long to compile.

    Raises:
        InvalidRequest: too deep, or more of a costly keyword than can be served.
    """
    regexes = merges = 0
    multiple = 1
    for node in _objects(schema):
        for name, most in (("properties", _MAX_PROPERTIES), ("patternProperties", _MAX_PATTERN_PROPERTIES)):
            members = node.get(name)
            if isinstance(members, dict) and len(members) > most:
                raise _beyond(f"{len(members):,} {name} in one object", most)
        patterns = node.get("patternProperties")
        own = sum(isinstance(node.get(name), str) for name in ("pattern", "format"))
        regexes += own + (len(patterns) if isinstance(patterns, dict) else 0)
        merges += _merges(node)
        multiple = math.lcm(multiple, _coefficient(node.get("multipleOf")))
        if multiple > _MAX_MULTIPLE:
            raise _beyond(f"multipleOf with a least common multiple of {multiple:.3g}", _MAX_MULTIPLE)
    if merges and regexes > _MAX_MERGED_REGEXES:
        raise _beyond(f"{regexes} patterns and formats together with allOf or the like", _MAX_MERGED_REGEXES)
    if regexes and merges > _MAX_MERGES:
        raise _beyond(f"{merges} times allOf or the like together with patterns or formats", _MAX_MERGES)


def _beyond(found: str, most: int) -> InvalidRequest:
    return InvalidRequest(f"the JSON schema has {found}", remedy=f"At most {most:,} can be enforced.")


def _merges(node: dict[str, Any]) -> bool:
    """Whether llguidance has to intersect schemas here."""
    if isinstance(node.get("patternProperties"), dict):
        return True
    parts = sum(isinstance(node.get(name), list | str) for name in (*_COMBINING, "pattern", "format"))
    combined = any(isinstance(node.get(name), list | str) for name in _COMBINING)
    all_of = node.get("allOf")
    several = isinstance(all_of, list) and len(all_of) > 1
    return several or (combined and (parts > 1 or "properties" in node or "items" in node))


def _coefficient(multiple: object) -> int:
    """A number's digits without trailing zeros: 2.5 and 250 are 25."""
    if not isinstance(multiple, int | float) or isinstance(multiple, bool) or multiple <= 0:
        return 1
    try:
        return int("".join(map(str, Decimal(str(multiple)).normalize().as_tuple().digits))) or 1
    except (InvalidOperation, ValueError):
        return _MAX_MULTIPLE + 1


def _objects(schema: object) -> Iterator[dict[str, Any]]:
    """Every JSON object in a schema, itself included; not recursive, as a client chooses the depth."""
    waiting: list[tuple[object, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise _beyond(f"more than {_MAX_DEPTH} levels", _MAX_DEPTH)
        if isinstance(value, dict):
            yield value
            waiting += [(member, depth + 1) for member in value.values()]
        elif isinstance(value, list):
            waiting += [(item, depth + 1) for item in value]


def without_costly(schema: Any) -> Any:
    """A schema without the keywords that bounds are on, and so true of more.

    Properties of these names stay, as their values are schemas and not these.
    """
    if isinstance(schema, list):
        return [without_costly(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {key: without_costly(member) for key, member in item.items()}
        if name in ("properties", "$defs", "definitions") and isinstance(item, dict)
        else without_costly(item)
        for name, item in schema.items()
        if name not in _COSTLY
    }


def embedded(schema: Any, *, lenient: bool) -> str:
    """The text that goes after ``%json``.

    Args:
        schema: JSON values.
        lenient: leave out keywords that llguidance does not know, where it would refuse them otherwise.
    """
    if not isinstance(schema, dict):
        return json.dumps(schema)
    return json.dumps(schema | {"x-guidance": _WRITING | {"lenient": lenient}})
