"""JSON schemas of a request: the format of its answer, and the limits that every schema has to keep."""

from __future__ import annotations

import json
from typing import Any

from gptoss_runtime.chat.conversation import JSON_OBJECT, ResponseFormat
from gptoss_runtime.server.errors import BadRequest, attribute_errors_to
from gptoss_runtime.server.request_body import check_depth
from gptoss_runtime.server.settings import Limits


def parse_response_format(given: Any, param: str, limits: Limits) -> ResponseFormat | None:
    """Parses an answer's format in either API's shape: text, json_object or json_schema.

    Raises:
        BadRequest: another type, or no usable schema.
    """
    if given is None:
        return None
    kind = given.get("type") if isinstance(given, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return JSON_OBJECT
    if kind != "json_schema":
        raise BadRequest(
            f"the type is {str(kind)[:40]!r}", param=f"{param}.type", remedy="Use text, json_object or json_schema."
        )
    inner = given.get("json_schema", given)  # Chat Completions nests it, Responses does not
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if schema is None:
        raise BadRequest("json_schema has no schema", param=param, code="missing_required_parameter")
    checked = check_schema(schema, f"{param}.schema", limits)
    name, description = inner.get("name"), inner.get("description")
    with attribute_errors_to(f"{param}.name"):
        return ResponseFormat(
            checked, name if isinstance(name, str) else "response", description if isinstance(description, str) else ""
        )


def check_schema(schema: Any, param: str, limits: Limits) -> dict[str, Any]:
    """Checks a JSON schema's type, nesting and size, and returns it.

    Raises:
        BadRequest: it is not an object, or exceeds a limit.
    """
    if not isinstance(schema, dict):
        raise BadRequest("a JSON schema is not an object", param=param, code="invalid_type")
    check_depth(schema, limits.schema_depth, what="the schema", param=param)
    if len(json.dumps(schema)) > limits.schema_bytes:
        raise BadRequest(f"the schema has more than {limits.schema_bytes:,} bytes", param=param)
    return schema
