"""What a client asks of the model, whichever API it uses: each dialect translates its requests to ``TurnRequest``."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Literal

from gptoss_runtime.chat.conversation import Effort, Message, ResponseFormat, Tool
from gptoss_runtime.engine.options import GenerationOptions


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One turn of a conversation to generate.

    Args:
        messages: the conversation.
        tools: functions the model is told about.
        tool_choice: whether it may or must call one.
        allowed_tools: names of those it may call; ``None``: all.
        response_format: what the answer has to be.
        effort: how long to reason.
        options: how to sample.
        stop_strings: strings that end the answer.
        choices: how many answers to generate, one after the other.
        drop_oldest: drop the oldest turns of a conversation that does not fit, instead of refusing it.
        date: today's date, told to the model.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] = "none"
    allowed_tools: tuple[str, ...] | None = None
    response_format: ResponseFormat | None = None
    effort: Effort = "medium"
    options: GenerationOptions = field(default_factory=GenerationOptions)
    stop_strings: tuple[str, ...] = ()
    choices: int = 1
    drop_oldest: bool = False
    date: datetime.date | None = None
