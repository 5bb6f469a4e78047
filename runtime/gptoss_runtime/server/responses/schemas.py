"""A Responses request: its shape, and its translation to a turn. Knows nothing of answers or engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from gptoss_runtime.chat.conversation import Message
from gptoss_runtime.server.errors import BadRequest
from gptoss_runtime.server.openai.response_format import parse_response_format
from gptoss_runtime.server.openai.schemas import EffortName, GenerationRequest, Schema, parse_text, to_effort
from gptoss_runtime.server.openai.tools import ToolSet
from gptoss_runtime.server.responses.items import Item, ReasoningCopies, parse_input, to_messages
from gptoss_runtime.server.settings import Limits
from gptoss_runtime.server.turn_request import TurnRequest

_INCLUDE_LOGPROBS = "message.output_text.logprobs"
_INCLUDE_REASONING = "reasoning.encrypted_content"


class Reasoning(Schema):
    """How long to reason, and whether to return a summary."""

    effort: EffortName | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(Schema):
    """The format of the answer's text."""

    format: dict[str, Any] | None = None


class ResponseRequest(GenerationRequest):
    """POST /v1/responses."""

    input: str | list[Any] | None = None
    instructions: str | list[Any] | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    max_output_tokens: int | None = Field(None, ge=1, lt=2**31)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Any] | None = None
    truncation: str | None = None
    metadata: dict[str, Any] | None = None
    conversation: Any = None
    prompt: Any = None

    def check_supported(self) -> None:
        """Refuses fields that would lead to a wrong answer if they were ignored.

        Raises:
            BadRequest: a conversation or prompt stored at OpenAI, an unknown truncation, or a background stream.
        """
        for name in ("conversation", "prompt"):
            if getattr(self, name) is not None:
                raise BadRequest(
                    f"{name} refers to something stored at OpenAI, which this server does not have",
                    param=name,
                    code="unsupported_parameter",
                    remedy="Send the input itself, or previous_response_id.",
                )
        if self.truncation not in (None, "auto", "disabled"):
            raise BadRequest("truncation is neither auto nor disabled", param="truncation")
        if self.background and self.stream:
            raise BadRequest(
                "a background response cannot be streamed", param="stream", remedy="Poll GET /v1/responses/{id}."
            )

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities are requested."""
        return self.top_logprobs is not None or _INCLUDE_LOGPROBS in (self.include or ())

    @property
    def reasoning_copies(self) -> ReasoningCopies:
        """In which further fields the client wants the reasoning."""
        return ReasoningCopies(
            encrypted_content=_INCLUDE_REASONING in (self.include or ()),
            summary=self.reasoning is not None and self.reasoning.summary is not None,
        )

    def to_items(self, limits: Limits) -> list[Item]:
        """The input as items with ids.

        Raises:
            BadRequest: too many items, or one that is malformed.
        """
        return parse_input(self.input, limits)

    def to_turn_request(self, tools: ToolSet, items: Sequence[Item], limits: Limits) -> TurnRequest:
        """Translates the request.

        Args:
            tools: the request's own, parsed.
            items: the conversation: earlier items and the request's own.
            limits: the server's limits.

        Raises:
            BadRequest: items, options or tools that cannot be served.
        """
        instructions = parse_text(_flatten_instructions(self.instructions), "instructions")
        messages = [Message("developer", instructions)] if instructions else []
        text_format = None if self.text is None else self.text.format
        return TurnRequest(
            messages=(*messages, *to_messages(items)),
            tools=tools.functions,
            tool_choice=tools.choice,
            allowed_tools=tools.allowed,
            response_format=parse_response_format(text_format, "text.format", limits),
            effort=to_effort(None if self.reasoning is None else self.reasoning.effort),
            options=self.to_options(
                max_new_tokens=self.max_output_tokens,
                logprobs=(self.top_logprobs or 0) if self.wants_logprobs else None,
            ),
            drop_oldest=self.truncation == "auto",
        )


def _flatten_instructions(instructions: str | list[Any] | None) -> str | list[Any] | None:
    """Flattens instructions that come as a list of messages to a list of content parts."""
    if not isinstance(instructions, list):
        return instructions
    contents = [item.get("content", "") for item in instructions if isinstance(item, dict)]
    return [part for content in contents for part in (content if isinstance(content, list) else [content])]
