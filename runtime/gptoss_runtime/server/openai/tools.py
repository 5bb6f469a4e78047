"""Tools in OpenAI's shapes, converted to the functions that harmony knows, and calls converted back.

Harmony knows functions only. A custom tool, which takes free text, becomes a function with one string, ``input``. A
namespace's functions get its name as a prefix. Tools that OpenAI's own servers run (web_search, …) are left out, not
refused. Knows tools; knows nothing of routes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gptoss_runtime.chat.conversation import Tool
from gptoss_runtime.server.errors import BadRequest, attribute_errors_to
from gptoss_runtime.server.openai.response_format import check_schema
from gptoss_runtime.server.settings import Limits

CLIENT_TOOL_TYPES = ("function", "custom", "namespace")  # the types that clients run; others are left out
ToolChoice = Literal["auto", "none", "required"]
_CHOICES: tuple[ToolChoice, ...] = ("auto", "none", "required")
_CUSTOM_SCHEMA = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class ClientTool:
    """One tool of a request.

    Args:
        tool: the function that the model sees.
        name: the client's name for it.
        custom: it takes free text.
        namespace: the client's namespace it is in.
    """

    tool: Tool
    name: str
    custom: bool = False
    namespace: str | None = None


class ToolSet:
    """A request's tools, and which of them the model may call.

    Args:
        tools: at most one for each name that the model sees.
        choice: OpenAI's ``tool_choice``.

    ``choice`` is the mode, and ``allowed`` the names that the model may call (``None``: all).

    Raises:
        BadRequest: two tools of one name, or a choice that cannot be served.
    """

    def __init__(self, tools: Sequence[ClientTool] = (), choice: Any = None) -> None:
        self._by_name: dict[str, ClientTool] = {}
        for client_tool in tools:
            name = client_tool.tool.name
            if name in self._by_name:
                raise BadRequest(f"two tools are named {name!r}", param="tools")
            self._by_name[name] = client_tool
        self.choice, self.allowed = self._parse_choice(choice)

    @property
    def functions(self) -> tuple[Tool, ...]:
        """The functions that the model sees."""
        return tuple(client_tool.tool for client_tool in self._by_name.values())

    def find(self, name: str) -> ClientTool | None:
        """The tool that the model knows by ``name``."""
        return self._by_name.get(name)

    def _parse_choice(self, choice: Any) -> tuple[ToolChoice, tuple[str, ...] | None]:
        if not self._by_name:
            if choice == "required" or _get_chosen_name(choice) is not None:
                raise BadRequest("tool_choice asks for a tool and there are none", param="tool_choice")
            return "none", None
        if choice is None:
            return "auto", None
        if isinstance(choice, str):
            for mode in _CHOICES:
                if choice == mode:
                    return mode, None
            raise BadRequest(
                f"tool_choice is {choice[:40]!r}", param="tool_choice", remedy="Use auto, none or required."
            )
        if not isinstance(choice, dict):
            raise BadRequest("tool_choice is neither text nor an object", param="tool_choice", code="invalid_type")
        if choice.get("type") == "allowed_tools":
            return self._parse_allowed(choice.get("allowed_tools", choice))
        name = _get_chosen_name(choice)
        if name is None:  # a tool that OpenAI's servers run: left out
            return "auto", None
        return "required", (self._find_function(name, choice.get("namespace")),)

    def _parse_allowed(self, allowed: Any) -> tuple[ToolChoice, tuple[str, ...] | None]:
        entries = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(entries, list) or allowed.get("mode") not in ("auto", "required"):
            raise BadRequest("allowed_tools needs a mode, auto or required, and tools", param="tool_choice")
        chosen = [(_get_chosen_name(entry), entry) for entry in entries]
        names = tuple(self._find_function(name, entry.get("namespace")) for name, entry in chosen if name is not None)
        if not names:
            return "none", None
        return ("required" if allowed["mode"] == "required" else "auto"), names

    def _find_function(self, name: str, namespace: Any) -> str:
        """The model's name for the tool that the client calls ``name``."""
        for function_name, client_tool in self._by_name.items():
            if client_tool.name == name and (namespace is None or namespace == client_tool.namespace):
                return function_name
        raise BadRequest(f"tool_choice names {name[:80]!r}, which is not among the tools", param="tool_choice")


def to_function_name(name: str, namespace: str | None) -> str:
    """The model's name for a tool: the namespace's name in front, shortened with a digest to fit 64 characters."""
    if namespace is None:
        return name
    joined = f"{namespace}__{name}"
    if len(joined) <= 64:
        return joined
    return f"{joined[:55]}_{hashlib.sha256(joined.encode('utf-8', 'replace')).hexdigest()[:8]}"


def decode_custom_input(arguments: str) -> str:
    """Extracts a custom tool's text from the model's arguments; returns the arguments as they are if it has none."""
    try:
        text = json.loads(arguments)["input"]
    except (ValueError, TypeError, KeyError):
        return arguments
    return text if isinstance(text, str) else arguments


def encode_custom_input(text: str) -> str:
    """Converts a custom tool's text to a function's arguments."""
    return json.dumps({"input": text}, ensure_ascii=False)


def parse_tools(tools: Iterable[Any], limits: Limits) -> list[ClientTool]:
    """Parses a request's tools, in either API's shape.

    Raises:
        BadRequest: a function or custom tool that is malformed, or too many tools.
    """
    parsed: list[ClientTool] = []
    for param, entry, namespace in _flatten(tools):
        parsed.append(_parse_tool(param, entry, namespace, limits))
        if len(parsed) > limits.tools:
            raise BadRequest(f"more than {limits.tools} tools", param="tools")
    return parsed


def _flatten(tools: Iterable[Any]) -> Iterator[tuple[str, Mapping[str, Any], str | None]]:
    """Yields tools one by one, those in namespaces included, as (param, tool, namespace)."""
    for index, entry in enumerate(tools):
        param = f"tools[{index}]"
        if not isinstance(entry, dict):
            raise BadRequest("a tool is not an object", param=param, code="invalid_type")
        kind = entry.get("type", "function")
        if kind in ("function", "custom"):
            yield param, entry, None
        elif kind == "namespace":
            name, inner = entry.get("name"), entry.get("tools")
            if not isinstance(name, str) or not isinstance(inner, list):
                raise BadRequest("a namespace needs a name and tools", param=param, code="missing_required_parameter")
            for inner_index, tool in enumerate(inner):
                if isinstance(tool, dict) and tool.get("type", "function") in ("function", "custom"):
                    yield f"{param}.tools[{inner_index}]", tool, name


def _parse_tool(param: str, entry: Mapping[str, Any], namespace: str | None, limits: Limits) -> ClientTool:
    custom = entry.get("type") == "custom"
    inner = entry.get("custom" if custom else "function", entry)  # Chat Completions nests it, Responses does not
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise BadRequest("a tool has no name", param=f"{param}.name", code="missing_required_parameter")
    description = inner.get("description") or ""
    if not isinstance(description, str):
        raise BadRequest("a description is not text", param=f"{param}.description", code="invalid_type")
    parameters = inner.get("parameters")
    if custom:
        schema: Mapping[str, Any] | None = _CUSTOM_SCHEMA
        description = "\n".join(filter(None, (description, _describe_grammar(inner.get("format")))))
    else:
        schema = None if parameters is None else check_schema(parameters, f"{param}.parameters", limits)
    name = inner["name"]
    with attribute_errors_to(f"{param}.name"):
        function_name = to_function_name(name, namespace)
        tool = Tool(function_name, description, schema, strict=custom or inner.get("strict") is True)
    return ClientTool(tool, name, custom, namespace)


def _describe_grammar(text_format: Any) -> str:
    """Tells the model a custom tool's grammar; it cannot be enforced inside the JSON string that carries the text."""
    if not isinstance(text_format, dict) or text_format.get("type") != "grammar":
        return ""
    grammar = text_format.get("grammar", text_format)
    definition = grammar.get("definition") if isinstance(grammar, dict) else None
    return f"The input follows this grammar:\n{definition}" if isinstance(definition, str) else ""


def _get_chosen_name(choice: Any) -> str | None:
    """The tool that a choice names; Chat Completions nests the name, Responses does not."""
    if not isinstance(choice, dict) or choice.get("type") not in ("function", "custom"):
        return None
    inner = choice.get(choice["type"], choice)
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str):
        raise BadRequest("tool_choice has no name", param="tool_choice", code="missing_required_parameter")
    return name
