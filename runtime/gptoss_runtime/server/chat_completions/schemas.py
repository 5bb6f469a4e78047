"""A Chat Completions request: its shape, and its translation to a turn. Knows nothing of answers or engines."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from gptoss_runtime.chat.conversation import Message, ToolCall
from gptoss_runtime.server.errors import BadRequest, attribute_errors_to
from gptoss_runtime.server.openai.response_format import parse_response_format
from gptoss_runtime.server.openai.schemas import EffortName, GenerationRequest, Schema, parse_text, to_effort
from gptoss_runtime.server.openai.tools import ToolSet, encode_custom_input
from gptoss_runtime.server.settings import Limits
from gptoss_runtime.server.turn_request import TurnRequest


class FunctionCall(Schema):
    """A function call's name and arguments."""

    name: str
    arguments: str = ""


class CustomCall(Schema):
    """A custom tool call's name and text."""

    name: str
    input: str = ""


class AssistantToolCall(Schema):
    """A tool call in an earlier answer."""

    id: str
    type: Literal["function", "custom"] = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None

    def to_tool_call(self, param: str) -> ToolCall:
        """Converts it to the conversation's call.

        Raises:
            BadRequest: it has no function.
        """
        if self.type == "custom" and self.custom is not None:
            return ToolCall(self.custom.name, encode_custom_input(self.custom.input))
        if self.function is None:
            raise BadRequest("a tool call has no function", param=param, code="missing_required_parameter")
        return ToolCall(self.function.name, self.function.arguments)


class ChatMessage(Schema):
    """One message; content is text, or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[AssistantToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class StreamOptions(Schema):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    stream_options: StreamOptions | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: EffortName | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)

    @field_validator("logit_bias")
    @classmethod
    def _check_token_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if bias is not None and not all(key.isdecimal() and len(key) < 10 for key in bias):
            raise ValueError("keys must be token ids")
        return bias

    def to_turn_request(self, tools: ToolSet, limits: Limits) -> TurnRequest:
        """Translates the request.

        Args:
            tools: the request's own, parsed.
            limits: the server's limits.

        Raises:
            BadRequest: messages, options or tools that cannot be served.
        """
        if len(self.messages) > limits.messages:
            raise BadRequest(f"more than {limits.messages} messages", param="messages")
        choices = self.n or 1
        if choices > limits.choices:
            raise BadRequest(f"n is {choices}", param="n", remedy=f"Ask for {limits.choices} choices or fewer.")
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return TurnRequest(
            messages=tuple(_to_messages(self.messages)),
            tools=tools.functions,
            tool_choice=tools.choice,
            allowed_tools=tools.allowed,
            response_format=parse_response_format(self.response_format, "response_format", limits),
            effort=to_effort(self.reasoning_effort),
            options=self.to_options(
                max_new_tokens=self.max_completion_tokens or self.max_tokens,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                logit_bias={int(key): value for key, value in (self.logit_bias or {}).items()},
            ),
            stop_strings=tuple(stops),
            choices=choices,
        )


def _to_messages(messages: list[ChatMessage]) -> list[Message]:
    """Converts messages to the runtime's; a tool's result gets the name of its tool through the call's id."""
    names: dict[str, str] = {}  # of called tools, by the calls' ids
    converted = []
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        with attribute_errors_to(param):
            converted.append(_to_message(message, param, names))
    return converted


def _to_message(message: ChatMessage, param: str, names: dict[str, str]) -> Message:
    """Converts one message, and adds the names of the tools that it calls to ``names``."""
    content = parse_text(message.content, f"{param}.content")
    if message.role == "tool":
        name = names.get(message.tool_call_id or "") or message.name
        if name is None:
            raise BadRequest(
                f"no earlier tool call has the id {message.tool_call_id!r}"[:200], param=f"{param}.tool_call_id"
            )
        return Message("tool", content, name=name)
    if message.role != "assistant":
        return Message(message.role, content)
    given = message.tool_calls or ()
    calls = [call.to_tool_call(f"{param}.tool_calls[{index}]") for index, call in enumerate(given)]
    names |= {source.id: call.name for source, call in zip(given, calls, strict=True)}
    reasoning = message.reasoning or message.reasoning_content or ""
    return Message("assistant", content or message.refusal or "", reasoning, tuple(calls))
