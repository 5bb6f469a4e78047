"""A generation's token ids as a turn's events: text, reasoning, tool calls, log-probabilities, and an honest end.

Adds to harmony's events what a server needs: stop strings, log-probabilities of the text's tokens, how many tokens were
reasoning, and no call of a tool that nobody offered. Knows events; knows nothing of threads or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gptoss_runtime.chat.conversation import (
    ContentDelta,
    Event,
    Finish,
    MessageEnd,
    ReasoningDelta,
    ToolCall,
    ToolCallDelta,
)
from gptoss_runtime.chat.harmony import HarmonyParser
from gptoss_runtime.chat.stops import StopStrings
from gptoss_runtime.engine.base import Generation
from gptoss_runtime.engine.results import GenerationResult, TokenLogprobs
from gptoss_runtime.errors import GptOssError
from gptoss_runtime.harmony_tokens import FIRST_SPECIAL

EndReason = Literal["stop", "length", "tool_calls", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer; ``preamble`` when it is said before a tool call."""

    text: str
    preamble: bool = False
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """How a choice ended: the last of its events."""

    reason: EndReason
    result: GenerationResult
    reasoning_tokens: int


TurnEvent = ReasoningDelta | Text | ToolCallDelta | ToolCall | MessageEnd | End


class Reader:
    """Reads one generation.

    Args:
        parser: fresh, of the model's format.
        stops: strings that end the answer; they count in its final text only.
        tools: names that may be called; a call of another is shown as the text it is.
    """

    def __init__(self, parser: HarmonyParser, stops: Sequence[str], tools: Sequence[str]) -> None:
        self._parser = parser
        self._stops = StopStrings(stops) if stops else None
        self._tools = frozenset(tools)
        self._reasoning_tokens = 0
        self._unseen = 0  # tokens of this message whose text has not come yet: parts of a character
        self._waiting: list[TokenLogprobs] = []  # of text that has not been given out
        self._called = False

    def read(self, generation: Generation) -> Iterator[TurnEvent]:
        """The events as the ids come; the last is ``End``. Cancels the generation at a stop string.

        Raises:
            GptOssError: the engine failed; after an ``End`` whose reason is "error".
        """
        try:
            for at, token in enumerate(generation):
                entry = generation.logprobs[at] if at < len(generation.logprobs) else None
                yield from self._token(token, entry)
                if self._stops is not None and self._stops.stopped:
                    generation.cancel()
                    generation.close()
                    yield End("stop", generation.result, self._reasoning_tokens)
                    return
        except GptOssError:
            yield from self._end(generation.result)
            raise
        yield from self._end(generation.result)

    def _token(self, token: int, entry: TokenLogprobs | None) -> Iterator[TurnEvent]:
        special = token >= FIRST_SPECIAL
        if not special:
            self._unseen += 1
            if entry is not None:
                self._waiting.append(entry)
        for event in self._parser.feed(token):
            yield from self._event(event)
        if special:
            self._unseen = 0
            self._waiting.clear()

    def _event(self, event: Event) -> Iterator[TurnEvent]:
        match event:
            case ReasoningDelta():
                self._reasoning_tokens += self._unseen
                self._seen()
                yield event
            case ContentDelta(text=text, preamble=preamble):
                yield from self._text(text, preamble)
            case ToolCallDelta(name=name) | ToolCall(name=name) if name in self._tools:
                self._called = self._called or isinstance(event, ToolCall)
                self._seen()
                yield event
            case ToolCallDelta(text=text):
                yield from self._text(text, preamble=False)
            case MessageEnd():
                yield from self._held_back()
                yield event
            case _:
                pass

    def _text(self, text: str, preamble: bool) -> Iterator[TurnEvent]:
        safe = text if preamble or self._stops is None else self._stops.feed(text)
        if safe:
            logprobs = tuple(self._waiting)
            self._seen()
            yield Text(safe, preamble, logprobs)
        self._unseen = 0

    def _held_back(self) -> Iterator[TurnEvent]:
        """What could have begun a stop string, at the end of the text."""
        rest = "" if self._stops is None else self._stops.flush()
        if rest:
            logprobs = tuple(self._waiting)
            self._seen()
            yield Text(rest, False, logprobs)

    def _end(self, result: GenerationResult) -> Iterator[TurnEvent]:
        finish = Finish("stop")
        for event in self._parser.finish(result):
            if isinstance(event, Finish):
                finish = event
            else:
                yield from self._event(event)
        yield from self._held_back()
        reason: EndReason = finish.reason
        if reason == "tool_calls" and not self._called:
            reason = "stop"
        yield End(reason, result, self._reasoning_tokens)

    def _seen(self) -> None:
        self._unseen = 0
        self._waiting.clear()
