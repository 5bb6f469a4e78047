"""The tools of a request: OpenAI's function, custom and namespace tools as harmony's functions, and calls back again.

A custom tool takes text: to the model it is a function with one string, ``input``. A namespace's functions get its name
in front. Other types (web_search, …) are run by OpenAI's own servers: they are left out, and never refused. Knows
tools; knows nothing of routes.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gptoss_runtime.chat.conversation import JSON_OBJECT, ResponseFormat, Tool
from gptoss_runtime.server.bodies import check_depth
from gptoss_runtime.server.errors import RequestRefused, about
from gptoss_runtime.server.settings import Limits

_INPUT_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
Choice = Literal["auto", "none", "required"]
KINDS = ("function", "custom", "namespace")  # the types of tools that clients run; others are left out
_CHOICES: tuple[Choice, ...] = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class Offer:
    """One tool: what the model sees, and what the client called it."""

    tool: Tool
    name: str
    custom: bool = False
    namespace: str | None = None


class Toolbox:
    """A request's tools.

    Args:
        offers: at most one for each name that the model sees.
        choice: OpenAI's ``tool_choice`` as a mode and names.
    """

    def __init__(self, offers: Sequence[Offer] = (), choice: Any = None) -> None:
        self._offers: dict[str, Offer] = {}
        for offer in offers:
            if offer.tool.name in self._offers:
                raise RequestRefused(f"two tools are named {offer.tool.name!r}", param="tools")
            self._offers[offer.tool.name] = offer
        self.choice, self.allowed = self._chosen(choice)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """As the model sees them."""
        return tuple(offer.tool for offer in self._offers.values())

    def offer(self, name: str) -> Offer | None:
        """The tool that the model calls ``name``."""
        return self._offers.get(name)

    def _chosen(self, choice: Any) -> tuple[Choice, tuple[str, ...] | None]:
        if not self._offers:
            if choice == "required" or _named(choice) is not None:
                raise RequestRefused("tool_choice asks for a tool and there are none", param="tool_choice")
            return "none", None
        if choice is None:
            return "auto", None
        if isinstance(choice, str):
            for mode in _CHOICES:
                if choice == mode:
                    return mode, None
            raise RequestRefused(
                f"tool_choice is {choice[:40]!r}", param="tool_choice", remedy="Use auto, none or required."
            )
        if not isinstance(choice, dict):
            raise RequestRefused("tool_choice is neither text nor an object", param="tool_choice", code="invalid_type")
        if choice.get("type") == "allowed_tools":
            return self._allowed(choice.get("allowed_tools", choice))
        name = _named(choice)
        if name is None:  # a tool that runs on OpenAI's servers: not here
            return "auto", None
        return "required", (self._known(name, choice.get("namespace")),)

    def _allowed(self, allowed: Any) -> tuple[Choice, tuple[str, ...] | None]:
        entries = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(entries, list) or allowed.get("mode") not in ("auto", "required"):
            raise RequestRefused("allowed_tools needs a mode, auto or required, and tools", param="tool_choice")
        named = [(_named(entry), entry) for entry in entries]
        names = tuple(self._known(name, entry.get("namespace")) for name, entry in named if name is not None)
        if not names:
            return "none", None
        return ("required" if allowed["mode"] == "required" else "auto"), names

    def _known(self, name: str, namespace: Any) -> str:
        for seen, offer in self._offers.items():
            if offer.name == name and (namespace is None or namespace == offer.namespace):
                return seen
        raise RequestRefused(f"tool_choice names {name[:80]!r}, which is not among the tools", param="tool_choice")


def seen_name(name: str, namespace: str | None) -> str:
    """What the model calls a tool that the client names so: both names, as long as names may be, or with a digest."""
    if namespace is None:
        return name
    joined = f"{namespace}__{name}"
    if len(joined) <= 64:
        return joined
    return f"{joined[:55]}_{hashlib.sha256(joined.encode('utf-8', 'replace')).hexdigest()[:8]}"


def new_call_id() -> str:
    """An id for a call, as OpenAI's look."""
    return f"call_{uuid.uuid4().hex[:24]}"


def input_of(arguments: str) -> str:
    """A custom tool's text in the arguments that the model wrote; the arguments themselves where it wrote none."""
    try:
        text = json.loads(arguments)["input"]
    except (ValueError, TypeError, KeyError):
        return arguments
    return text if isinstance(text, str) else arguments


def arguments_of(text: str) -> str:
    """A custom tool's text as arguments."""
    return json.dumps({"input": text}, ensure_ascii=False)


def offers(tools: Iterable[Any], limits: Limits) -> list[Offer]:
    """The tools of a request, in either API's shape.

    Raises:
        RequestRefused: a function or custom tool that is malformed, or too many.
    """
    found: list[Offer] = []
    for param, entry, namespace in _unfolded(tools):
        found += _offer(param, entry, namespace, limits)
        if len(found) > limits.tools:
            raise RequestRefused(f"more than {limits.tools} tools", param="tools")
    return found


def response_format(wanted: Any, param: str, limits: Limits) -> ResponseFormat | None:
    """The format of an answer, in either API's shape: text, json_object or json_schema.

    Raises:
        RequestRefused: another type, or no usable schema.
    """
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return JSON_OBJECT
    if kind != "json_schema":
        raise RequestRefused(
            f"the type is {str(kind)[:40]!r}", param=f"{param}.type", remedy="Use text, json_object or json_schema."
        )
    inner = wanted.get("json_schema", wanted)
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if schema is None:
        raise RequestRefused("json_schema has no schema", param=param, code="missing_required_parameter")
    checked = _schema(schema, f"{param}.schema", limits)
    name, description = inner.get("name"), inner.get("description")
    with about(f"{param}.name"):
        return ResponseFormat(
            checked, name if isinstance(name, str) else "response", description if isinstance(description, str) else ""
        )


def _unfolded(tools: Iterable[Any]) -> Iterator[tuple[str, Mapping[str, Any], str | None]]:
    """Tools one by one, a namespace's among them; types that run elsewhere left out."""
    for at, entry in enumerate(tools):
        param = f"tools[{at}]"
        if not isinstance(entry, dict):
            raise RequestRefused("a tool is not an object", param=param, code="invalid_type")
        kind = entry.get("type", "function")
        if kind in ("function", "custom"):
            yield param, entry, None
        elif kind == "namespace":
            name, inner = entry.get("name"), entry.get("tools")
            if not isinstance(name, str) or not isinstance(inner, list):
                raise RequestRefused(
                    "a namespace needs a name and tools", param=param, code="missing_required_parameter"
                )
            for place, tool in enumerate(inner):
                if isinstance(tool, dict) and tool.get("type", "function") in ("function", "custom"):
                    yield f"{param}.tools[{place}]", tool, name


def _offer(param: str, entry: Mapping[str, Any], namespace: str | None, limits: Limits) -> list[Offer]:
    custom = entry.get("type") == "custom"
    inner = entry.get("custom" if custom else "function", entry)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RequestRefused("a tool has no name", param=f"{param}.name", code="missing_required_parameter")
    description = inner.get("description") or ""
    if not isinstance(description, str):
        raise RequestRefused("a description is not text", param=f"{param}.description", code="invalid_type")
    parameters = inner.get("parameters")
    if custom:
        schema: Mapping[str, Any] | None = _INPUT_SCHEMA
        description = "\n".join(filter(None, (description, _grammar_note(inner.get("format")))))
    else:
        schema = None if parameters is None else _schema(parameters, f"{param}.parameters", limits)
    name = inner["name"]
    seen = seen_name(name, namespace)
    with about(f"{param}.name"):
        tool = Tool(seen, description, schema, strict=custom or inner.get("strict") is True)
    return [Offer(tool, name, custom, namespace)]


def _schema(schema: Any, param: str, limits: Limits) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise RequestRefused("a JSON schema is not an object", param=param, code="invalid_type")
    check_depth(schema, limits.schema_depth, what="the schema", param=param)
    if len(json.dumps(schema)) > limits.schema_bytes:
        raise RequestRefused(f"the schema has more than {limits.schema_bytes:,} bytes", param=param)
    return schema


def _grammar_note(form: Any) -> str:
    """What a custom tool's grammar says, told to the model: it is not enforced inside the JSON string."""
    if not isinstance(form, dict) or form.get("type") != "grammar":
        return ""
    grammar = form.get("grammar", form)
    definition = grammar.get("definition") if isinstance(grammar, dict) else None
    return f"The input follows this grammar:\n{definition}" if isinstance(definition, str) else ""


def _named(choice: Any) -> str | None:
    """The tool that a choice names: Chat Completions nests the name, Responses do not."""
    if not isinstance(choice, dict) or choice.get("type") not in ("function", "custom"):
        return None
    inner = choice.get(choice["type"], choice)
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str):
        raise RequestRefused("tool_choice has no name", param="tool_choice", code="missing_required_parameter")
    return name
