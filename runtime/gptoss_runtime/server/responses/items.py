"""Items of the Responses API as messages of a conversation. Knows their shapes; knows nothing of routes or engines.

Items of types that belong to OpenAI's own tools are left out: a client that has them from elsewhere may send them.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss_runtime.chat.conversation import Message, ToolCall
from gptoss_runtime.server.errors import RequestRefused, about
from gptoss_runtime.server.schemas import text_of
from gptoss_runtime.server.settings import Limits
from gptoss_runtime.server.toolbox import arguments_of, seen_name

Item = dict[str, Any]
_SEAL = "gptoss-reasoning:"
_ROLES = ("system", "developer", "user", "assistant")
_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}


def new_id(kind: str) -> str:
    """An id for an item of that type."""
    return f"{_PREFIXES.get(kind, 'item')}_{uuid.uuid4().hex}"


def carried(reasoning: str) -> str:
    """Reasoning as ``encrypted_content``, for clients that bring back nothing else; it is no secret."""
    return _SEAL + base64.b64encode(reasoning.encode()).decode()


def _brought(content: Any) -> str:
    """The reasoning that ``carried`` put there; another server's seal cannot be opened, and is left out."""
    if not isinstance(content, str) or not content.startswith(_SEAL):
        return ""
    try:
        return base64.b64decode(content.removeprefix(_SEAL), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def items_of(given: str | list[Any] | None, limits: Limits) -> list[Item]:
    """A request's input as items, each with a type and an id; a string is what the user says.

    Raises:
        RequestRefused: too many, or one that is no object.
    """
    if given is None:
        return []
    if isinstance(given, str):
        return items_of([{"role": "user", "content": given}], limits)
    if len(given) > limits.messages:
        raise RequestRefused(f"more than {limits.messages} input items", param="input")
    items = []
    for at, item in enumerate(given):
        if not isinstance(item, dict):
            raise RequestRefused("an input item is not an object", param=f"input[{at}]", code="invalid_type")
        kind = item.get("type") or "message"
        if not isinstance(kind, str):
            raise RequestRefused("a type is not text", param=f"input[{at}].type", code="invalid_type")
        made: Item = {"type": kind} | item
        if kind == "message" and isinstance(item.get("content"), str):
            part = "output_text" if item.get("role") == "assistant" else "input_text"
            made["content"] = [{"type": part, "text": item["content"]}]
        made["id"] = item["id"] if isinstance(item.get("id"), str) and item["id"] else new_id(kind)
        items.append(made)
    return items


def resolved(items: Sequence[Item], known: Callable[[str], Item | None]) -> list[Item]:
    """Items with references replaced by what they refer to.

    Raises:
        RequestRefused: a reference to an item that is not kept here.
    """
    found = []
    for at, item in enumerate(items):
        if item["type"] == "item_reference":
            referred = known(item["id"])
            if referred is None:
                raise RequestRefused(
                    f"no item {item['id'][:80]!r} is kept here", param=f"input[{at}].id", code="item_not_found"
                )
            item = referred
        found.append(item)
    return found


def conversation(items: Sequence[Item]) -> list[Message]:
    """Items as messages: reasoning and calls become part of the assistant's message they belong to.

    Raises:
        RequestRefused: an item that lacks what its type needs.
    """
    gathering = _Gathering()
    for at, item in enumerate(items):
        with about(f"input[{at}]"):
            gathering.add(item, f"input[{at}]")
    gathering.close()
    return gathering.messages or [Message("user", "")]


@dataclass(slots=True)
class _Gathering:
    """Messages so far, and the assistant's that is not complete yet."""

    messages: list[Message] = field(default_factory=list)
    reasoning: str = ""
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, item: Mapping[str, Any], param: str) -> None:
        match item["type"]:
            case "message":
                self._message(item, param)
            case "reasoning":
                if self.calls or self.content:
                    self.close()
                said = text_of(item.get("content"), f"{param}.content")
                self.reasoning += said or _brought(item.get("encrypted_content"))
            case "function_call" | "custom_tool_call":
                self._call(item, param)
            case "function_call_output" | "custom_tool_call_output":
                self._output(item, param)

    def close(self) -> None:
        """Ends the assistant's message."""
        if self.content or self.calls:
            self.messages.append(Message("assistant", self.content, self.reasoning, tuple(self.calls)))
        self.reasoning, self.content, self.calls = "", "", []

    def _message(self, item: Mapping[str, Any], param: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise RequestRefused(
                f"the role is {str(role)[:40]!r}", param=f"{param}.role", remedy=f"Use one of: {', '.join(_ROLES)}."
            )
        content = text_of(item.get("content"), f"{param}.content")
        if role != "assistant":
            self.close()
            self.messages.append(Message(role, content))
            return
        if self.calls or self.content:
            self.close()
        self.content = content

    def _call(self, item: Mapping[str, Any], param: str) -> None:
        custom = item["type"] == "custom_tool_call"
        name, call_id = _text(item, "name", param), _text(item, "call_id", param)
        text = _text(item, "input" if custom else "arguments", param)
        namespace = item.get("namespace")
        name = seen_name(name, namespace if isinstance(namespace, str) else None)
        self.names[call_id] = name
        self.calls.append(ToolCall(name, arguments_of(text) if custom else text))

    def _output(self, item: Mapping[str, Any], param: str) -> None:
        self.close()
        name = self.names.get(_text(item, "call_id", param))
        if name is None:
            raise RequestRefused(
                f"no call before it has the id {item['call_id'][:80]!r}",
                param=f"{param}.call_id",
                code="call_not_found",
            )
        self.messages.append(Message("tool", text_of(item.get("output"), f"{param}.output"), name=name))


def _text(item: Mapping[str, Any], key: str, param: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise RequestRefused(f"{key} is missing", param=f"{param}.{key}", code="missing_required_parameter")
    return value
