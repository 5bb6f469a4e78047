"""A Responses request: its shape, and what it asks of the model. Knows nothing of answers or engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from gptoss_runtime.chat.conversation import Message
from gptoss_runtime.server.errors import RequestRefused
from gptoss_runtime.server.responses.items import conversation, items_of
from gptoss_runtime.server.schemas import AnswerRequest, EffortName, Schema, effort_of, text_of
from gptoss_runtime.server.settings import Limits
from gptoss_runtime.server.toolbox import Toolbox, response_format
from gptoss_runtime.server.turn import TurnRequest

_WITH_LOGPROBS = "message.output_text.logprobs"
_WITH_REASONING = "reasoning.encrypted_content"


class Reasoning(Schema):
    """How long to reason, and whether a summary is wanted."""

    effort: EffortName | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(Schema):
    """What the answer's text has to be."""

    format: dict[str, Any] | None = None


class ResponseRequest(AnswerRequest):
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

    def check(self) -> None:
        """Refuses what would be answered wrongly if it were ignored.

        Raises:
            RequestRefused: a conversation or a prompt that OpenAI keeps, or truncation of an unknown kind.
        """
        for name in ("conversation", "prompt"):
            if getattr(self, name) is not None:
                raise RequestRefused(
                    f"{name} names something that OpenAI keeps, and this server does not",
                    param=name,
                    code="unsupported_parameter",
                    remedy="Send the input itself, or previous_response_id.",
                )
        if self.truncation not in (None, "auto", "disabled"):
            raise RequestRefused("truncation is neither auto nor disabled", param="truncation")
        if self.background and self.stream:
            raise RequestRefused(
                "a background response is not streamed here", param="stream", remedy="Poll GET /v1/responses/{id}."
            )

    @property
    def with_logprobs(self) -> bool:
        """Whether log-probabilities are asked for."""
        return self.top_logprobs is not None or _WITH_LOGPROBS in (self.include or ())

    @property
    def with_reasoning_carried(self) -> bool:
        """Whether the client wants reasoning in a form that it can bring back without a store."""
        return _WITH_REASONING in (self.include or ())

    def items(self, limits: Limits) -> list[dict[str, Any]]:
        """Its input as items with ids."""
        return items_of(self.input, limits)

    def turn(self, toolbox: Toolbox, items: Sequence[dict[str, Any]], limits: Limits) -> TurnRequest:
        """What is asked of the model.

        Args:
            toolbox: its tools.
            items: the conversation, what went before included.
            limits: for the format's schema.

        Raises:
            RequestRefused: items, options or tools that cannot be served.
        """
        instructions = text_of(_instructed(self.instructions), "instructions")
        messages = [Message("developer", instructions)] if instructions else []
        wanted = None if self.text is None else self.text.format
        return TurnRequest(
            messages=(*messages, *conversation(items)),
            tools=toolbox.tools,
            tool_choice=toolbox.choice,
            allowed=toolbox.allowed,
            response_format=response_format(wanted, "text.format", limits),
            effort=effort_of(None if self.reasoning is None else self.reasoning.effort),
            options=self.options(
                max_new_tokens=self.max_output_tokens,
                logprobs=(self.top_logprobs or 0) if self.with_logprobs else None,
            ),
            drop_oldest=self.truncation == "auto",
        )


def _instructed(instructions: str | list[Any] | None) -> str | list[Any] | None:
    """The contents of instructions that come as messages."""
    if not isinstance(instructions, list):
        return instructions
    contents = [item.get("content", "") for item in instructions if isinstance(item, dict)]
    return [part for content in contents for part in (content if isinstance(content, list) else [content])]
