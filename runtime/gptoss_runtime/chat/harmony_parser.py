"""Parses an answer in the harmony format: token ids to chat events, one id at a time.

Handles whatever a model may write: an answer that leaves the format keeps its text and is marked as malformed. Knows
the format's messages and channels; ``harmony`` supplies the decoder of single messages, from openai-harmony.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from gptoss_runtime.chat.conversation import (
    ChatEvent,
    ContentDelta,
    Finish,
    MessageEnd,
    ReasoningDelta,
    ToolCall,
    ToolCallDelta,
    check_tool_name,
)
from gptoss_runtime.engine.base import Generation
from gptoss_runtime.engine.results import FinishReason, GenerationResult
from gptoss_runtime.errors import GptOssError, InvalidRequest
from gptoss_runtime.harmony_tokens import CALL, END, ENDOFTEXT, RETURN, START

FUNCTIONS_NAMESPACE = "functions."  # of tools, in recipients and authors


@dataclass(frozen=True, slots=True)
class DecodedMessage:
    """A message of an answer, complete or in progress; ``text`` is empty while it is in progress."""

    is_assistant: bool
    channel: str | None
    recipient: str | None
    text: str = ""


class MessageDecoder(Protocol):
    """Decodes token ids to messages; never raises."""

    def feed(self, token: int) -> bool:
        """Decodes one id; returns False if it violates the format."""

    def end(self) -> bool:
        """Ends the input, which completes the message in progress; returns False if it cannot be completed."""

    @property
    def state(self) -> Literal["start", "header", "content"]:
        """The part of a message that is expected next."""

    @property
    def content_delta(self) -> str:
        """The text that the last id added to the message's content; may be empty."""

    @property
    def current(self) -> DecodedMessage:
        """The message in progress."""

    @property
    def last(self) -> DecodedMessage | None:
        """The last complete message."""

    @property
    def header_text(self) -> str:
        """The unfinished header as text; empty if it contains special tokens."""


class HarmonyParser:
    """Converts the ids of one answer to events; never raises, whatever a model may write.

    Args:
        open_decoder: creates a decoder. Its argument tells whether it starts inside an assistant message, after
            ``<|start|>assistant``, or at ``<|start|>``.

    ``tokens`` holds the ids so far.
    """

    def __init__(self, open_decoder: Callable[[bool], MessageDecoder]) -> None:
        self.tokens: list[int] = []
        self._open_decoder = open_decoder
        self._decoder = open_decoder(True)
        self._malformed = False
        self._skipping = False  # after a format error, until the next <|start|>
        self._channel: str | None = None
        self._recipient: str | None = None
        self._emitted = 0  # characters of the current message's content that are in events
        self._called_tool = False
        self._in_first_message = True

    def stream(self, generation: Generation) -> Iterator[ChatEvent]:
        """Yields the events of a generation as its ids arrive; the last is ``Finish``.

        Raises:
            GptOssError: the engine failed; raised after a ``Finish`` whose reason is "error".
        """
        try:
            for token in generation:
                yield from self.feed(token)
        except GptOssError:
            yield from self.finish(generation.result)
            raise
        yield from self.finish(generation.result)

    def feed(self, token: int) -> list[ChatEvent]:
        """Parses one more id and returns its events."""
        self.tokens.append(token)
        if token == ENDOFTEXT:  # ends a document, not a message; ``finish`` handles the open message
            return []
        if self._skipping:
            if token != START:
                return []
            self._decoder, self._skipping = self._open_decoder(False), False
        if not self._decoder.feed(token):
            self._malformed = self._skipping = True
            self._in_first_message, self._emitted = False, 0
            return []
        if token in (END, RETURN, CALL):
            return self._end_message()
        delta = self._decoder.content_delta
        if not delta:
            return []
        message = self._enter(self._decoder.current)
        if not message.is_assistant:
            self._malformed = True
            return []
        self._emitted += len(delta)
        return [self._delta_event(delta)]

    def finish(self, result: GenerationResult | None = None) -> list[ChatEvent]:
        """Ends the answer and returns the remaining events; the last is ``Finish``.

        Args:
            result: the engine's result. Without it, the reason is "stop" if the answer is complete, else "length".
        """
        events: list[ChatEvent] = []
        complete = self._skipping or self._decoder.state == "start"
        if not complete:
            events += self._end_incomplete_message()
        cut = result is not None and result.finish_reason is not FinishReason.STOP
        if not complete and not cut:
            self._malformed = True
        return [*events, Finish(self._finish_reason(complete, result), self._malformed, result)]

    def _finish_reason(
        self, complete: bool, result: GenerationResult | None
    ) -> Literal["stop", "length", "cancelled", "tool_calls", "error"]:
        if result is not None and result.finish_reason is FinishReason.ERROR:
            return "error"
        if result is not None and result.finish_reason is FinishReason.CANCELLED:
            return "cancelled"
        if self._called_tool:
            return "tool_calls"
        if result is not None:
            return "length" if result.finish_reason is FinishReason.LENGTH else "stop"
        return "stop" if complete else "length"

    def _end_message(self) -> list[ChatEvent]:
        """Returns the text of a complete message that was not streamed, and its tool call."""
        message = self._decoder.last
        emitted, self._emitted, self._in_first_message = self._emitted, 0, False
        if message is None or not message.is_assistant:
            self._malformed = True
            return []
        self._enter(message)
        events: list[ChatEvent] = []
        if len(message.text) > emitted:  # <|message|> was missing, so the decoder found the text only now
            self._malformed = True
            events.append(self._delta_event(message.text[emitted:]))
        name = self._tool_name()
        if name is not None:
            self._called_tool = True
            events.append(ToolCall(name, message.text))
        return [*events, MessageEnd(self._channel)]

    def _end_incomplete_message(self) -> list[ChatEvent]:
        """Returns what is left of a message that never ended. An answer without any header was meant as text."""
        if self._decoder.state == "content":
            return self._end_incomplete_content()
        text = self._decoder.header_text
        if not self._in_first_message or not text:
            return []
        self._malformed = True
        return [ContentDelta(text)]

    def _end_incomplete_content(self) -> list[ChatEvent]:
        """Returns U+FFFD if the content ends within a character."""
        message = self._enter(self._decoder.current)
        if not self._decoder.end():
            return []
        last = self._decoder.last
        rest = last.text[self._emitted :] if last is not None and message.is_assistant else ""
        return [self._delta_event(rest)] if rest else []

    def _enter(self, message: DecodedMessage) -> DecodedMessage:
        """Makes ``message`` the one that events belong to."""
        self._channel, self._recipient = message.channel, message.recipient
        return message

    def _delta_event(self, text: str) -> ChatEvent:
        name = self._tool_name()
        if name is not None:
            return ToolCallDelta(name, text)
        if self._channel == "analysis":
            return ReasoningDelta(text)
        return ContentDelta(text, preamble=self._channel == "commentary")

    def _tool_name(self) -> str | None:
        """The function that the current message calls. With an invalid name, the message is treated as text."""
        if not self._recipient or self._recipient == "assistant":
            return None
        name = self._recipient.removeprefix(FUNCTIONS_NAMESPACE)
        try:
            check_tool_name(name)
        except InvalidRequest:
            self._malformed = True
            return None
        return name
