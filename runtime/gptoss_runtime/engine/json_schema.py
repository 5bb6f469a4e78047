"""JSON schemas from clients: limits on what is costly to enforce, and their text in a grammar.

llguidance compiles most schemas in milliseconds, but some combinations of keywords take minutes. Knows JSON Schema;
knows nothing of harmony or tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from gptoss_runtime.errors import InvalidRequest

_MAX_DEPTH = 100  # levels of nesting; llguidance's JSON parser stops at 128
_MAX_PROPERTIES = 2000  # per object; the cost is quadratic
_MAX_PATTERN_PROPERTIES = 32  # per object; every pair is checked
_MAX_MULTIPLE = 128  # least common multiple of all multipleOf, ignoring powers of ten; one state per remainder
# Where schemas are intersected, the cost is exponential in the number of regexes and of intersections.
_MAX_MERGED_REGEXES = 8
_MAX_MERGES = 24

_COMBINING = ("allOf", "anyOf", "oneOf", "$ref")
_COSTLY = ("pattern", "format", "patternProperties", "multipleOf")
# Between JSON tokens: one space, or one line break with indentation. A model cannot emit white space for ever.
_FORMATTING = {"whitespace_pattern": r"[ ]|\r?\n[ \t]{0,32}", "json_allow_general_unicode_escapes": True}


def check_bounds(schema: object) -> None:
    """Checks that a schema does not take too long to compile.

    Raises:
        InvalidRequest: it is nested too deeply, or a costly keyword exceeds its limit.
    """
    regexes = merges = 0
    multiple = 1
    for node in _iter_objects(schema):
        for name, limit in (("properties", _MAX_PROPERTIES), ("patternProperties", _MAX_PATTERN_PROPERTIES)):
            members = node.get(name)
            if isinstance(members, dict) and len(members) > limit:
                raise _limit_error(f"{len(members):,} {name} in one object", limit)
        patterns = node.get("patternProperties")
        own = sum(isinstance(node.get(name), str) for name in ("pattern", "format"))
        regexes += own + (len(patterns) if isinstance(patterns, dict) else 0)
        merges += _needs_merge(node)
        multiple = math.lcm(multiple, _significant_digits(node.get("multipleOf")))
        if multiple > _MAX_MULTIPLE:
            raise _limit_error(f"multipleOf with a least common multiple of {multiple:.3g}", _MAX_MULTIPLE)
    if merges and regexes > _MAX_MERGED_REGEXES:
        raise _limit_error(f"{regexes} patterns and formats combined with allOf or similar", _MAX_MERGED_REGEXES)
    if regexes and merges > _MAX_MERGES:
        raise _limit_error(f"{merges} uses of allOf or similar combined with patterns or formats", _MAX_MERGES)


def _limit_error(found: str, limit: int) -> InvalidRequest:
    return InvalidRequest(f"the JSON schema has {found}", remedy=f"At most {limit:,} can be enforced.")


def _needs_merge(node: dict[str, Any]) -> bool:
    """Whether llguidance has to intersect schemas at this object."""
    if isinstance(node.get("patternProperties"), dict):
        return True
    parts = sum(isinstance(node.get(name), list | str) for name in (*_COMBINING, "pattern", "format"))
    combined = any(isinstance(node.get(name), list | str) for name in _COMBINING)
    all_of = node.get("allOf")
    several = isinstance(all_of, list) and len(all_of) > 1
    return several or (combined and (parts > 1 or "properties" in node or "items" in node))


def _significant_digits(multiple: object) -> int:
    """The significant digits of a number, without trailing zeros: 25 for both 2.5 and 250."""
    if not isinstance(multiple, int | float) or isinstance(multiple, bool) or multiple <= 0:
        return 1
    try:
        return int("".join(map(str, Decimal(str(multiple)).normalize().as_tuple().digits))) or 1
    except (InvalidOperation, ValueError):
        return _MAX_MULTIPLE + 1


def _iter_objects(schema: object) -> Iterator[dict[str, Any]]:
    """Yields every JSON object in a schema, itself included. Iterative, because a client chooses the depth."""
    stack: list[tuple[object, int]] = [(schema, 1)]
    while stack:
        value, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise _limit_error(f"more than {_MAX_DEPTH} levels", _MAX_DEPTH)
        if isinstance(value, dict):
            yield value
            stack += [(member, depth + 1) for member in value.values()]
        elif isinstance(value, list):
            stack += [(item, depth + 1) for item in value]


def remove_costly_keywords(schema: Any) -> Any:
    """Removes the keywords that are limited, so the result accepts more values.

    Properties that happen to have such a name stay.
    """
    if isinstance(schema, list):
        return [remove_costly_keywords(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: {key: remove_costly_keywords(member) for key, member in item.items()}
        if name in ("properties", "$defs", "definitions") and isinstance(item, dict)
        else remove_costly_keywords(item)
        for name, item in schema.items()
        if name not in _COSTLY
    }


def to_grammar_text(schema: Any, *, lenient: bool) -> str:
    """The text of a schema after ``%json`` in a grammar.

    Args:
        schema: JSON values.
        lenient: have llguidance ignore keywords that it does not support, instead of failing.
    """
    if not isinstance(schema, dict):
        return json.dumps(schema)
    return json.dumps(schema | {"x-guidance": _FORMATTING | {"lenient": lenient}})
