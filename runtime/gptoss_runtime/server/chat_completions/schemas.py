"""A Chat Completions request: its shape, and what it asks of the model. Knows nothing of answers or engines."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from gptoss_runtime.chat.conversation import Message, ToolCall
from gptoss_runtime.server.errors import RequestRefused, about
from gptoss_runtime.server.schemas import AnswerRequest, EffortName, Schema, effort_of, text_of
from gptoss_runtime.server.settings import Limits
from gptoss_runtime.server.toolbox import Toolbox, arguments_of, response_format
from gptoss_runtime.server.turn import TurnRequest


class CalledFunction(Schema):
    """A function call's name and arguments."""

    name: str
    arguments: str = ""


class CalledCustom(Schema):
    """A custom tool call's name and text."""

    name: str
    input: str = ""


class CallMade(Schema):
    """A tool call of an earlier answer."""

    id: str
    type: Literal["function", "custom"] = "function"
    function: CalledFunction | None = None
    custom: CalledCustom | None = None

    def call(self, param: str) -> ToolCall:
        """As the conversation has it."""
        if self.type == "custom" and self.custom is not None:
            return ToolCall(self.custom.name, arguments_of(self.custom.input))
        if self.function is None:
            raise RequestRefused("a tool call without its function", param=param, code="missing_required_parameter")
        return ToolCall(self.function.name, self.function.arguments)


class ChatMessage(Schema):
    """One message; content is text, or a list of text parts."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallMade] | None = None
    tool_call_id: str | None = None
    name: str | None = None


class StreamOptions(Schema):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None


class ChatRequest(AnswerRequest):
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
    def _ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        if bias is not None and not all(key.isdecimal() and len(key) < 10 for key in bias):
            raise ValueError("its keys are token ids")
        return bias

    def turn(self, toolbox: Toolbox, limits: Limits) -> TurnRequest:
        """What is asked of the model.

        Raises:
            RequestRefused: messages, options or tools that cannot be served.
        """
        if len(self.messages) > limits.messages:
            raise RequestRefused(f"more than {limits.messages} messages", param="messages")
        choices = self.n or 1
        if choices > limits.choices:
            raise RequestRefused(f"n is {choices}", param="n", remedy=f"Ask for {limits.choices} choices or fewer.")
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestRefused("top_logprobs needs logprobs to be true", param="top_logprobs")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        bias = {int(key): value for key, value in (self.logit_bias or {}).items()}
        return TurnRequest(
            messages=tuple(_conversation(self.messages)),
            tools=toolbox.tools,
            tool_choice=toolbox.choice,
            allowed=toolbox.allowed,
            response_format=response_format(self.response_format, "response_format", limits),
            effort=effort_of(self.reasoning_effort),
            options=self.options(
                max_new_tokens=self.max_completion_tokens or self.max_tokens,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                logit_bias=bias,
            ),
            stops=tuple(stops),
            choices=choices,
        )


def _conversation(messages: list[ChatMessage]) -> list[Message]:
    """Messages as the runtime has them; a tool's result finds its tool's name by the call's id."""
    names: dict[str, str] = {}
    conversation = []
    for at, message in enumerate(messages):
        with about(f"messages[{at}]"):
            conversation.append(_message(message, f"messages[{at}]", names))
    return conversation


def _message(message: ChatMessage, param: str, names: dict[str, str]) -> Message:
    content = text_of(message.content, f"{param}.content")
    if message.role == "tool":
        name = names.get(message.tool_call_id or "") or message.name
        if name is None:
            raise RequestRefused(
                f"no tool call before it has the id {message.tool_call_id!r}"[:200], param=f"{param}.tool_call_id"
            )
        return Message("tool", content, name=name)
    if message.role != "assistant":
        return Message(message.role, content)
    calls = [made.call(f"{param}.tool_calls[{place}]") for place, made in enumerate(message.tool_calls or ())]
    names |= {made.id: call.name for made, call in zip(message.tool_calls or (), calls, strict=True)}
    reasoning = message.reasoning or message.reasoning_content or ""
    return Message("assistant", content or message.refusal or "", reasoning, tuple(calls))
