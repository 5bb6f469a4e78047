"""Parses a generation's token ids into a turn's events: text, reasoning, tool calls, log-probabilities, and an end.

Adds to harmony's events what a server needs: stop strings, log-probabilities of the text's tokens, a count of reasoning
tokens, and the rule that a call of an unknown tool is shown as text. Knows events; knows nothing of threads or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gptoss_runtime.chat.conversation import (
    ChatEvent,
    ContentDelta,
    Finish,
    MessageEnd,
    ReasoningDelta,
    ToolCall,
    ToolCallDelta,
)
from gptoss_runtime.chat.harmony_parser import HarmonyParser
from gptoss_runtime.chat.stops import StopStrings
from gptoss_runtime.engine.base import Generation
from gptoss_runtime.engine.results import GenerationResult, TokenLogprobs
from gptoss_runtime.errors import GptOssError
from gptoss_runtime.harmony_tokens import FIRST_SPECIAL

EndReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer.

    Args:
        text: the text.
        preamble: it comes before a tool call and is not the final answer.
        logprobs: the log-probabilities of its tokens, if they were asked for.
    """

    text: str
    preamble: bool = False
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """How a choice ended: its last event."""

    reason: EndReason
    result: GenerationResult
    reasoning_tokens: int


TurnEvent = ReasoningDelta | TextDelta | ToolCallDelta | ToolCall | MessageEnd | ChoiceEnd


class TurnEventParser:
    """Parses one generation.

    Args:
        parser: a fresh one.
        stop_strings: strings that end the answer; only its final text is searched for them.
        tools: names that may be called; a call of another is shown as text.
    """

    def __init__(self, parser: HarmonyParser, stop_strings: Sequence[str], tools: Sequence[str]) -> None:
        self._parser = parser
        self._stops = StopStrings(stop_strings) if stop_strings else None
        self._tools = frozenset(tools)
        self._reasoning_tokens = 0
        self._pending_tokens = 0  # of this message, without text so far: each is part of a character
        self._pending_logprobs: list[TokenLogprobs] = []  # of text that was not yielded yet
        self._called = False

    def stream(self, generation: Generation) -> Iterator[TurnEvent]:
        """Yields the events as the ids come; the last is ``ChoiceEnd``. Cancels the generation at a stop string.

        Raises:
            GptOssError: the engine failed; after a ``ChoiceEnd`` whose reason is "error".
        """
        try:
            for index, token in enumerate(generation):
                entry = generation.logprobs[index] if index < len(generation.logprobs) else None
                yield from self._feed(token, entry)
                if self._stops is not None and self._stops.stopped:
                    generation.cancel()
                    generation.close()
                    yield ChoiceEnd("stop", generation.result, self._reasoning_tokens)
                    return
        except GptOssError:
            yield from self._finish(generation.result)
            raise
        yield from self._finish(generation.result)

    def _feed(self, token: int, entry: TokenLogprobs | None) -> Iterator[TurnEvent]:
        special = token >= FIRST_SPECIAL
        if not special:
            self._pending_tokens += 1
            if entry is not None:
                self._pending_logprobs.append(entry)
        for event in self._parser.feed(token):
            yield from self._convert(event)
        if special:
            self._clear_pending()

    def _convert(self, event: ChatEvent) -> Iterator[TurnEvent]:
        match event:
            case ReasoningDelta():
                self._reasoning_tokens += self._pending_tokens
                self._clear_pending()
                yield event
            case ContentDelta(text=text, preamble=preamble):
                yield from self._convert_text(text, preamble)
            case ToolCallDelta(name=name) | ToolCall(name=name) if name in self._tools:
                self._called = self._called or isinstance(event, ToolCall)
                self._clear_pending()
                yield event
            case ToolCallDelta(text=text):
                yield from self._convert_text(text, preamble=False)
            case MessageEnd():
                yield from self._flush_held_text()
                yield event
            case _:
                pass

    def _convert_text(self, text: str, preamble: bool) -> Iterator[TurnEvent]:
        safe = text if preamble or self._stops is None else self._stops.feed(text)
        if safe:
            yield TextDelta(safe, preamble, self._take_logprobs())
        self._pending_tokens = 0

    def _flush_held_text(self) -> Iterator[TurnEvent]:
        """Yields text that was held back because it could have begun a stop string."""
        rest = "" if self._stops is None else self._stops.flush()
        if rest:
            yield TextDelta(rest, False, self._take_logprobs())

    def _finish(self, result: GenerationResult) -> Iterator[TurnEvent]:
        finish = Finish("stop")
        for event in self._parser.finish(result):
            if isinstance(event, Finish):
                finish = event
            else:
                yield from self._convert(event)
        yield from self._flush_held_text()
        reason: EndReason = finish.reason
        if reason == "tool_calls" and not self._called:
            reason = "stop"
        yield ChoiceEnd(reason, result, self._reasoning_tokens)

    def _take_logprobs(self) -> tuple[TokenLogprobs, ...]:
        logprobs = tuple(self._pending_logprobs)
        self._clear_pending()
        return logprobs

    def _clear_pending(self) -> None:
        self._pending_tokens = 0
        self._pending_logprobs.clear()
