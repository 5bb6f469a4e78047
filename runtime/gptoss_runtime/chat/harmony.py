"""Harmony, gpt-oss's chat format: conversations to token ids, token ids to events. The only user of openai-harmony.

Everything a user, a tool or a schema says is encoded as ordinary text, so ``<|end|>`` typed by a user is eight
characters to the model and never a control token. Knows the format; knows nothing of engines.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import openai_harmony as oh

from gptoss_runtime.artifact.vocabulary import build_vocabulary_folder, set_environment
from gptoss_runtime.chat.conversation import (
    EFFORTS,
    JSON_OBJECT,
    ContentDelta,
    Effort,
    Event,
    Finish,
    Message,
    MessageEnd,
    ReasoningDelta,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolCallDelta,
    check_tool_name,
)
from gptoss_runtime.engine.base import Generation
from gptoss_runtime.engine.results import FinishReason, GenerationResult
from gptoss_runtime.errors import BackendError, GptOssError, InvalidRequest
from gptoss_runtime.harmony_tokens import CALL, END, ENDOFTEXT, RETURN, START

_NAMESPACE = "functions."
_UNBROKEN = 256
_RUNS = re.compile(rf"\S{{{_UNBROKEN + 1},}}|\s{{{_UNBROKEN + 1},}}")
_LONGEST_RUN = 4096
_load_lock = threading.Lock()


class Harmony:
    """The format, ready to render and parse; ``Harmony.load`` once, then share it: it keeps no state."""

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    @classmethod
    def load(cls, tokenizer: Path, *, cache: Path | None = None) -> Harmony:
        """Loads the encoding offline, from the artifact's own tokenizer.json.

        Args:
            tokenizer: the artifact's tokenizer.json.
            cache: where the rebuilt vocabulary is kept; ``None``: the user's cache.

        Raises:
            ArtifactError: the tokenizer is not gpt-oss's.
            ResourceError: the cache cannot be written.
            BackendError: openai-harmony refused it.
        """
        folder = build_vocabulary_folder(tokenizer, cache=cache)
        with _load_lock, set_environment("TIKTOKEN_ENCODINGS_BASE", str(folder)):
            try:
                return cls(oh.load_harmony_encoding(oh.HarmonyEncodingName.HARMONY_GPT_OSS))
            except (oh.HarmonyError, RuntimeError, OSError) as error:
                raise BackendError(f"openai-harmony cannot load its vocabulary: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        effort: Effort = "medium",
        date: datetime.date | None = None,
        response_format: ResponseFormat | None = None,
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant speaks next.

        Earlier turns' reasoning is left out; reasoning since the last answer stays, as tool calls in between need it.

        Args:
            messages: at least one. Leading system and developer messages become the instructions.
            tools: functions the model may call.
            effort: how long to reason.
            date: told to the model when given.
            response_format: what the answer has to be; a schema that says more than "an object" is told to the model.

        Raises:
            InvalidRequest: no messages, an unknown effort, or something openai-harmony cannot render.
        """
        if effort not in EFFORTS:
            raise InvalidRequest(f"unknown effort {effort!r}", remedy=f"Use one of: {', '.join(EFFORTS)}.")
        if not messages:
            raise InvalidRequest("the conversation is empty", remedy="Add at least one message.")
        try:
            rendered = _conversation(messages, tools, effort, date, response_format)
            ids: list[int] = self._encoding.render_conversation_for_completion(
                oh.Conversation(messages=rendered),
                oh.Role.ASSISTANT,
                oh.RenderConversationConfig(auto_drop_analysis=False),
            )
        except (oh.HarmonyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            raise InvalidRequest(f"the conversation cannot be rendered: {error}") from error
        return ids

    def encode(self, text: str) -> list[int]:
        """Ids of text, all of it ordinary; lone surrogates become U+FFFD."""
        pieces = (self._encoding.encode(piece, disallowed_special=()) for piece in _pieces(_clean(text)))
        return [token for ids in pieces for token in ids]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of ids, special tokens written out, invalid UTF-8 as U+FFFD.

        Raises:
            InvalidRequest: an id outside the vocabulary.
        """
        try:
            text: str = self._encoding.decode(list(token_ids))
        except (oh.HarmonyError, OverflowError, TypeError) as error:
            raise InvalidRequest(f"the ids cannot be decoded: {error}") from error
        return text

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id, which may be part of a character; a special token's are its name.

        Raises:
            InvalidRequest: an id outside the vocabulary.
        """
        try:
            return bytes(self._encoding._inner.decode_bytes([token]))  # what `decode` wraps, and all there is for bytes
        except (oh.HarmonyError, OverflowError, TypeError) as error:
            raise InvalidRequest(f"id {token!r} cannot be decoded: {error}") from error

    def parser(self) -> HarmonyParser:
        """A parser for one answer."""
        return HarmonyParser(self._encoding)


class HarmonyParser:
    """Turns an answer's ids into events, one id at a time; never raises on what a model may write.

    ``tokens`` are the ids so far.
    """

    def __init__(self, encoding: Any) -> None:
        self.tokens: list[int] = []
        self._encoding = encoding
        self._inner = self._fresh(oh.Role.ASSISTANT)
        self._malformed = False
        self._skipping = False  # after an error: until the next <|start|>
        self._channel: str | None = None
        self._recipient: str | None = None
        self._sent = 0  # characters of this message's content that were given out
        self._called = False
        self._first = True  # no message has ended or failed yet

    def stream(self, generation: Generation) -> Iterator[Event]:
        """A generation's events as its ids come; the last is ``Finish``.

        Raises:
            GptOssError: the engine failed; after a ``Finish`` whose reason is "error".
        """
        try:
            for token in generation:
                yield from self.feed(token)
        except GptOssError:
            yield from self.finish(generation.result)
            raise
        yield from self.finish(generation.result)

    def feed(self, token: int) -> list[Event]:
        """The events that one more id makes."""
        self.tokens.append(token)
        if token == ENDOFTEXT:  # ends a document, not a message: `finish` reports what is open
            return []
        if self._skipping:
            if token != START:
                return []
            self._inner, self._skipping = self._fresh(None), False
        try:
            self._inner.process(token)
        except (oh.HarmonyError, ValueError, RuntimeError):
            self._malformed = self._skipping = True
            self._first, self._sent = False, 0
            return []
        if token in (END, RETURN, CALL):
            return self._message_end()
        delta = self._inner.last_content_delta
        if not delta:
            return []
        self._channel, self._recipient = self._inner.current_channel, self._inner.current_recipient
        if self._inner.current_role != oh.Role.ASSISTANT:
            self._malformed = True
            return []
        self._sent += len(delta)
        return [self._delta(delta)]

    def finish(self, result: GenerationResult | None = None) -> list[Event]:
        """The events that the end of the ids makes; the last one is ``Finish``.

        Args:
            result: the engine's report; without it, the reason is "stop" if the answer is complete, else "length".
        """
        events: list[Event] = []
        complete = self._skipping or self._inner.state == oh.StreamState.EXPECT_START
        if not complete:
            events += self._rest()
        cut = result is not None and result.finish_reason is not FinishReason.STOP
        if not complete and not cut:
            self._malformed = True
        return [*events, Finish(self._reason(complete, result), self._malformed, result)]

    def _reason(
        self, complete: bool, result: GenerationResult | None
    ) -> Literal["stop", "length", "cancelled", "tool_calls", "error"]:
        if result is not None and result.finish_reason is FinishReason.ERROR:
            return "error"
        if result is not None and result.finish_reason is FinishReason.CANCELLED:
            return "cancelled"
        if self._called:
            return "tool_calls"
        if result is not None:
            return "length" if result.finish_reason is FinishReason.LENGTH else "stop"
        return "stop" if complete else "length"

    def _message_end(self) -> list[Event]:
        """A message is complete: what the stream did not show of it yet, a tool call whole."""
        messages = self._inner.messages
        message = messages[-1] if messages else None
        sent, self._sent, self._first = self._sent, 0, False
        if message is None or message.author.role != oh.Role.ASSISTANT:
            self._malformed = True
            return []
        self._channel, self._recipient = message.channel, message.recipient
        content = _text(message)
        events: list[Event] = []
        if len(content) > sent:  # the parser found the text only at the end: <|message|> was missing
            self._malformed = True
            events.append(self._delta(content[sent:]))
        name = self._tool_name()
        if name is not None:
            self._called = True
            events.append(ToolCall(name, content))
        return [*events, MessageEnd(self._channel)]

    def _rest(self) -> list[Event]:
        """What is left of a message that never ended; an answer that is no message at all was meant as plain text."""
        if self._inner.state == oh.StreamState.CONTENT:
            return self._held_back()
        header = self._inner.state_data.get("header_tokens", [])
        if not self._first or not header or any(self._encoding.is_special_token(token) for token in header):
            return []
        self._malformed = True
        return [ContentDelta(self._encoding.decode(header))]

    def _held_back(self) -> list[Event]:
        """The first bytes of a character whose others never came, as U+FFFD."""
        self._channel, self._recipient = self._inner.current_channel, self._inner.current_recipient
        assistant = self._inner.current_role == oh.Role.ASSISTANT
        try:
            self._inner.process_eos()
        except (oh.HarmonyError, ValueError, RuntimeError):
            return []
        messages = self._inner.messages
        held = _text(messages[-1])[self._sent :] if messages and assistant else ""
        return [self._delta(held)] if held else []

    def _delta(self, text: str) -> Event:
        name = self._tool_name()
        if name is not None:
            return ToolCallDelta(name, text)
        if self._channel == "analysis":
            return ReasoningDelta(text)
        return ContentDelta(text, preamble=self._channel == "commentary")

    def _tool_name(self) -> str | None:
        """The function called by the current message; a recipient that cannot be one makes it plain text."""
        if not self._recipient or self._recipient == "assistant":
            return None
        name = self._recipient.removeprefix(_NAMESPACE)
        try:
            check_tool_name(name)
        except InvalidRequest:
            self._malformed = True
            return None
        return name

    def _fresh(self, role: Any) -> Any:
        return oh.StreamableParser(self._encoding, role, strict=False)


def _conversation(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    effort: Effort,
    date: datetime.date | None,
    response_format: ResponseFormat | None,
) -> list[Any]:
    """Our messages as openai-harmony's, with the system and developer messages the format begins with."""
    system = oh.SystemContent.new().with_reasoning_effort(oh.ReasoningEffort(effort.capitalize()))
    if date is not None:
        system = system.with_conversation_start_date(date.isoformat())
    rendered = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    leading = 0
    while leading < len(messages) and messages[leading].role in ("system", "developer"):
        leading += 1
    parts = [_clean(message.content) for message in messages[:leading]]
    if response_format is not None and response_format.schema != JSON_OBJECT.schema:
        parts.append(_format_section(response_format))
    instructions = _broken_up("\n\n".join(parts))
    if instructions or tools:
        developer = oh.DeveloperContent(instructions=instructions or None)
        if tools:
            developer = developer.with_function_tools([_description(tool) for tool in tools])
        rendered.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
    finals = [at for at, message in enumerate(messages) if message.is_final]
    last_final = finals[-1] if finals else -1
    for at, message in enumerate(messages[leading:], start=leading):
        rendered += _message(message, with_reasoning=at > last_final)
    return rendered


def _format_section(response_format: ResponseFormat) -> str:
    lines = ["# Response Formats", "", f"## {response_format.name}", ""]
    if response_format.description:
        lines += [f"// {_clean(response_format.description)}"]
    schema = json.dumps(_clean_json(dict(response_format.schema)), ensure_ascii=False, separators=(",", ":"))
    return "\n".join([*lines, schema])


def _message(message: Message, *, with_reasoning: bool) -> list[Any]:
    content = _clean(message.content)
    if message.role == "user":
        return [oh.Message.from_role_and_contents(oh.Role.USER, _contents(content))]
    if message.role in ("system", "developer"):
        developer = oh.DeveloperContent(instructions=_broken_up(content))
        return [oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer)]
    if message.role == "tool":
        author = oh.Author.new(oh.Role.TOOL, f"{_NAMESPACE}{message.name}")
        spoken = oh.Message(author=author, content=_contents(content))
        return [spoken.with_channel("commentary").with_recipient("assistant")]
    return _assistant(message, content, with_reasoning=with_reasoning)


def _assistant(message: Message, content: str, *, with_reasoning: bool) -> list[Any]:
    parts = []
    if message.reasoning and with_reasoning:
        parts.append(_said(_clean(message.reasoning), "analysis"))
    if content:
        parts.append(_said(content, "commentary" if message.tool_calls else "final"))
    for call in message.tool_calls:
        said = _said(_clean(call.arguments), "commentary").with_recipient(f"{_NAMESPACE}{call.name}")
        parts.append(said.with_content_type("<|constrain|>json"))
    return parts


def _text(message: Any) -> str:
    return "".join(part.text for part in message.content if isinstance(part, oh.TextContent))


def _said(text: str, channel: str) -> Any:
    return oh.Message.from_role_and_contents(oh.Role.ASSISTANT, _contents(text)).with_channel(channel)


def _description(tool: Tool) -> Any:
    parameters = None if tool.parameters is None else _clean_json(dict(tool.parameters))
    return oh.ToolDescription.new(tool.name, _broken_up(_clean(tool.description)), parameters=parameters)


def _contents(text: str) -> list[Any]:
    """A message's text in pieces, which the format joins again without a trace."""
    return [oh.TextContent(text=piece) for piece in _pieces(text)]


def _pieces(text: str) -> list[str]:
    """Text cut inside runs without a break, whose tokenising takes time by the square of their length."""
    borders = [0]
    for run in _RUNS.finditer(text):
        borders += range(run.start() + _UNBROKEN, run.end(), _UNBROKEN)
    return [text[start:end] for start, end in pairwise([*borders, len(text)])]


def _broken_up(text: str) -> str:
    """Text of a kind that cannot be cut, as it is.

    Raises:
        InvalidRequest: a run without a break that would hold up everything else for long.
    """
    if any(run.end() - run.start() > _LONGEST_RUN for run in _RUNS.finditer(text)):
        raise InvalidRequest(
            f"instructions or a tool's description have more than {_LONGEST_RUN:,} characters without a break",
            remedy="Send such data as a user's message.",
        )
    return text


def _clean(text: str) -> str:
    """Text that UTF-8 can carry: lone surrogates become U+FFFD, pairs become their character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _clean_json(value: Any) -> Any:
    if isinstance(value, str):
        return _broken_up(_clean(value))
    if isinstance(value, dict):
        return {_clean(str(key)): _clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean_json(item) for item in value]
    return value
