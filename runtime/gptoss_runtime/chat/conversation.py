"""What a conversation is made of, and the events of an answer as it streams. Plain data: knows no format, no model."""

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
    """The model asks for a tool: ``arguments`` is its text, meant to be JSON but exactly as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Args:
        role: who speaks. "system" and "developer" both instruct the model.
        content: the text; an assistant's is its answer, a tool's is its result.
        reasoning: an assistant's analysis before the content.
        tool_calls: what an assistant asked for.
        name: which tool speaks, when role is "tool".

    Raises:
        InvalidRequest: an unknown role, or a tool name that cannot be one.
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
        """Whether this ends an assistant's turn: an answer, and no tool to wait for."""
        return self.role == "assistant" and bool(self.content) and not self.tool_calls


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Args:
        name: letters, digits, ``_`` and ``-``; at most 64.
        description: what it does, for the model.
        parameters: JSON schema of its arguments, an object; ``None``: it takes none.
        function: called with the arguments as keywords; ``None``: the caller runs the tool itself.
        strict: where arguments are enforced, refuse ``parameters`` that cannot be enforced to the letter; otherwise
            they are enforced as far as they can be.
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
    """What an answer has to be.

    Args:
        schema: JSON schema of the answer.
        name: for the model; as a tool's.
        description: what the answer is for, for the model.
    """

    schema: Mapping[str, Any]
    name: str = "response"
    description: str = ""

    def __post_init__(self) -> None:
        check_tool_name(self.name)


def check_tool_name(name: object) -> None:
    """Refuses what is not a tool's name.

    Raises:
        InvalidRequest: not a string of 1 to 64 letters, digits, ``_`` and ``-``.
    """
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise InvalidRequest(f"{str(name)[:80]!r} cannot name a tool", remedy="Use 1 to 64 letters, digits, _ and -.")


JSON_OBJECT = ResponseFormat({"type": "object"})  # any JSON object; a model is told nothing of it


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the model's analysis."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer; ``preamble`` when it is said before a tool call and not the final answer."""

    text: str
    preamble: bool = False


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of a tool call's arguments; a ``ToolCall`` follows when they are complete."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class MessageEnd:
    """One harmony message is complete; a turn may have several."""

    channel: str | None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A tool ran; ``failed`` when the model was told of an error."""

    name: str
    content: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event.

    Args:
        reason: "stop", "length", "cancelled", "tool_calls" when the caller must supply results, or "error" when the
            engine failed: the iterator that gave this event then raises why.
        malformed: the model left the format: text was recovered where possible, nothing was invented.
        result: the engine's report on the (last) generation; ``None`` when a parser was used without an engine.
    """

    reason: Literal["stop", "length", "cancelled", "tool_calls", "error"]
    malformed: bool = False
    result: GenerationResult | None = None


Event = ReasoningDelta | ContentDelta | ToolCallDelta | ToolCall | MessageEnd | ToolResult | Finish
