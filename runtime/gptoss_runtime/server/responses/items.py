"""The Responses API's items, converted to messages of a conversation. Knows their shapes, no routes and no engines.

Items of types that belong to OpenAI's own tools are skipped: a conversation started elsewhere may contain them.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss_runtime.chat.conversation import Message, ToolCall
from gptoss_runtime.server.errors import BadRequest, attribute_errors_to
from gptoss_runtime.server.openai.schemas import parse_text
from gptoss_runtime.server.openai.tools import encode_custom_input, to_function_name
from gptoss_runtime.server.settings import Limits

Item = dict[str, Any]
_REASONING_PREFIX = "gptoss-reasoning:"
_ROLES = ("system", "developer", "user", "assistant")
_ID_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}


@dataclass(frozen=True, slots=True)
class ReasoningCopies:
    """Fields of a reasoning item that repeat its text, for clients that read only those.

    Args:
        encrypted_content: for clients that send reasoning back in this field only.
        summary: for clients that show summaries only.
    """

    encrypted_content: bool = False
    summary: bool = False


def new_item_id(kind: str) -> str:
    """A new id for an item of that type."""
    return f"{_ID_PREFIXES.get(kind, 'item')}_{uuid.uuid4().hex}"


def encode_reasoning(reasoning: str) -> str:
    """Encodes reasoning for ``encrypted_content``: base64, not encrypted."""
    return _REASONING_PREFIX + base64.b64encode(reasoning.encode()).decode()


def decode_reasoning(content: Any) -> str:
    """Decodes what ``encode_reasoning`` encoded; returns "" for another server's content."""
    if not isinstance(content, str) or not content.startswith(_REASONING_PREFIX):
        return ""
    try:
        return base64.b64decode(content.removeprefix(_REASONING_PREFIX), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def parse_input(given: str | list[Any] | None, limits: Limits) -> list[Item]:
    """Parses a request's input to items, each with a type and an id; a string is a user's message.

    Raises:
        BadRequest: too many items, or one that is malformed.
    """
    if given is None:
        return []
    if isinstance(given, str):
        return parse_input([{"role": "user", "content": given}], limits)
    if len(given) > limits.messages:
        raise BadRequest(f"more than {limits.messages} input items", param="input")
    return [_parse_item(item, f"input[{index}]") for index, item in enumerate(given)]


def _parse_item(item: Any, param: str) -> Item:
    if not isinstance(item, dict):
        raise BadRequest("an input item is not an object", param=param, code="invalid_type")
    kind = item.get("type") or "message"
    if not isinstance(kind, str):
        raise BadRequest("a type is not text", param=f"{param}.type", code="invalid_type")
    parsed: Item = {"type": kind} | item
    if kind == "message" and isinstance(item.get("content"), str):
        part_type = "output_text" if item.get("role") == "assistant" else "input_text"
        parsed["content"] = [{"type": part_type, "text": item["content"]}]
    parsed["id"] = item["id"] if isinstance(item.get("id"), str) and item["id"] else new_item_id(kind)
    return parsed


def resolve_references(items: Sequence[Item], find_item: Callable[[str], Item | None]) -> list[Item]:
    """Replaces references to items by those items.

    Raises:
        BadRequest: a reference to an item that is not kept here.
    """
    resolved = []
    for index, item in enumerate(items):
        if item["type"] == "item_reference":
            found = find_item(item["id"])
            if found is None:
                raise BadRequest(
                    f"no item {item['id'][:80]!r} is kept here", param=f"input[{index}].id", code="item_not_found"
                )
            item = found
        resolved.append(item)
    return resolved


def to_messages(items: Sequence[Item]) -> list[Message]:
    """Converts items to messages: reasoning and calls become parts of the assistant message they belong to.

    Raises:
        BadRequest: an item lacks what its type requires.
    """
    builder = _MessageBuilder()
    for index, item in enumerate(items):
        param = f"input[{index}]"
        with attribute_errors_to(param):
            builder.add(item, param)
    builder.end_message()
    return builder.messages or [Message("user", "")]


@dataclass(slots=True)
class _MessageBuilder:
    """The messages so far, the parts of an assistant message not yet complete, and the called tools by call id."""

    messages: list[Message] = field(default_factory=list)
    reasoning: str = ""
    content: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    tool_names: dict[str, str] = field(default_factory=dict)

    def add(self, item: Mapping[str, Any], param: str) -> None:
        match item["type"]:
            case "message":
                self._add_message(item, param)
            case "reasoning":
                if self.calls or self.content:
                    self.end_message()
                text = parse_text(item.get("content"), f"{param}.content")
                self.reasoning += text or decode_reasoning(item.get("encrypted_content"))
            case "function_call" | "custom_tool_call":
                self._add_call(item, param)
            case "function_call_output" | "custom_tool_call_output":
                self._add_output(item, param)

    def end_message(self) -> None:
        """Completes the assistant message."""
        if self.content or self.calls:
            self.messages.append(Message("assistant", self.content, self.reasoning, tuple(self.calls)))
        self.reasoning, self.content, self.calls = "", "", []

    def _add_message(self, item: Mapping[str, Any], param: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise BadRequest(
                f"the role is {str(role)[:40]!r}", param=f"{param}.role", remedy=f"Use one of: {', '.join(_ROLES)}."
            )
        content = parse_text(item.get("content"), f"{param}.content")
        if role != "assistant":
            self.end_message()
            self.messages.append(Message(role, content))
            return
        if self.calls or self.content:
            self.end_message()
        self.content = content

    def _add_call(self, item: Mapping[str, Any], param: str) -> None:
        custom = item["type"] == "custom_tool_call"
        name, call_id = _require_text(item, "name", param), _require_text(item, "call_id", param)
        text = _require_text(item, "input" if custom else "arguments", param)
        namespace = item.get("namespace")
        name = to_function_name(name, namespace if isinstance(namespace, str) else None)
        self.tool_names[call_id] = name
        self.calls.append(ToolCall(name, encode_custom_input(text) if custom else text))

    def _add_output(self, item: Mapping[str, Any], param: str) -> None:
        self.end_message()
        name = self.tool_names.get(_require_text(item, "call_id", param))
        if name is None:
            raise BadRequest(
                f"no earlier call has the id {item['call_id'][:80]!r}",
                param=f"{param}.call_id",
                code="call_not_found",
            )
        self.messages.append(Message("tool", parse_text(item.get("output"), f"{param}.output"), name=name))


def _require_text(item: Mapping[str, Any], key: str, param: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise BadRequest(f"{key} is missing", param=f"{param}.{key}", code="missing_required_parameter")
    return value
