"""The messages and tools of a conversation, and the events of a streamed answer. Plain data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gptoss_runtime.engine.results import GenerationResult
from gptoss_runtime.errors import InvalidRequest

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant", "tool")
Effort = Literal["low", "medium", "high"]
EFFORTS: tuple[Effort, ...] = ("low", "medium", "high")

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call by the model; ``arguments`` should be JSON, but is the model's text unchanged."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Args:
        role: the author. "system" and "developer" both instruct the model.
        content: the text: an assistant's answer, a tool's result.
        reasoning: an assistant's analysis before its answer.
        tool_calls: an assistant's tool calls.
        name: the tool's name, if role is "tool".

    Raises:
        InvalidRequest: the role is unknown, a tool name is invalid, or the content is not a string.
    """

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequest(f"unknown role {self.role!r}", remedy=f"Use one of: {', '.join(ROLES)}.")
        if not isinstance(self.content, str) or not isinstance(self.reasoning, str):
            raise InvalidRequest(f"a {self.role} message's content is not text", remedy="Pass a string.")
        if self.role == "tool":
            check_tool_name(self.name)
        for call in self.tool_calls:
            check_tool_name(call.name)

    @property
    def is_final(self) -> bool:
        """Whether this ends an assistant's turn: it has content and no tool calls."""
        return self.role == "assistant" and bool(self.content) and not self.tool_calls


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Args:
        name: 1 to 64 letters, digits, ``_`` and ``-``.
        description: tells the model what the tool does.
        parameters: a JSON schema of the arguments, an object; ``None`` means no arguments.
        function: called with the arguments as keywords; ``None`` means the caller runs the tool.
        strict: if arguments are enforced by a grammar, reject ``parameters`` that cannot be enforced exactly instead
            of enforcing them as far as possible.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    function: Callable[..., object] | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        check_tool_name(self.name)


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The required format of an answer.

    Args:
        schema: a JSON schema of the answer.
        name: tells the model what the format is called; the rules are those for a tool's name.
        description: tells the model what the answer is for.
    """

    schema: Mapping[str, Any]
    name: str = "response"
    description: str = ""

    def __post_init__(self) -> None:
        check_tool_name(self.name)


def check_tool_name(name: object) -> None:
    """Validates the name of a tool.

    Raises:
        InvalidRequest: it is not a string of 1 to 64 letters, digits, ``_`` and ``-``.
    """
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise InvalidRequest(f"{str(name)[:80]!r} cannot name a tool", remedy="Use 1 to 64 letters, digits, _ and -.")


JSON_OBJECT = ResponseFormat({"type": "object"})  # any JSON object; the model is not told about it


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """The next piece of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """The next piece of the answer; ``preamble`` if it precedes a tool call instead of being the final answer."""

    text: str
    preamble: bool = False


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of a tool call's arguments; a ``ToolCall`` follows once they are complete."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class MessageEnd:
    """The end of one harmony message; a turn may have several."""

    channel: str | None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a tool that was run; ``failed`` if it is an error."""

    name: str
    content: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event.

    Args:
        reason: "stop", "length", "cancelled", "tool_calls" if the caller must supply results, or "error" if the engine
            failed; after "error" the iterator raises the engine's error.
        malformed: the answer left the harmony format; its text was kept as far as possible.
        result: the engine's result of the (last) generation; ``None`` if a parser was used without an engine.
    """

    reason: Literal["stop", "length", "cancelled", "tool_calls", "error"]
    malformed: bool = False
    result: GenerationResult | None = None


ChatEvent = ReasoningDelta | ContentDelta | ToolCallDelta | ToolCall | MessageEnd | ToolResult | Finish
