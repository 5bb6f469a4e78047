"""Harmony, gpt-oss's chat format: renders conversations to token ids. The only module that imports openai-harmony.

Text from users, tools and schemas is always encoded as ordinary text: ``<|end|>`` typed by a user becomes eight
characters, never a control token. ``harmony_parser`` parses answers. Knows nothing of engines.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import openai_harmony as oh

from gptoss_runtime.artifact.vocabulary import build_vocabulary_folder, set_environment
from gptoss_runtime.chat.conversation import (
    EFFORTS,
    JSON_OBJECT,
    Effort,
    Message,
    ResponseFormat,
    Tool,
)
from gptoss_runtime.chat.harmony_parser import FUNCTIONS_NAMESPACE, DecodedMessage, HarmonyParser
from gptoss_runtime.errors import BackendError, InvalidRequest

# openai-harmony tokenises a run without a break (all white space or none) in time quadratic in its length. Messages are
# passed in pieces that cut such runs, which renders the same text; what cannot be passed in pieces is limited.
_PIECE_LENGTH = 256
_LONG_RUNS = re.compile(rf"\S{{{_PIECE_LENGTH + 1},}}|\s{{{_PIECE_LENGTH + 1},}}")
_MAX_RUN = 4096
_load_lock = threading.Lock()


class Harmony:
    """The loaded format, which renders and parses. Stateless: load it once with ``Harmony.load``, then share it."""

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    @classmethod
    def load(cls, tokenizer: Path, *, cache: Path | None = None) -> Harmony:
        """Loads the encoding offline, from the artifact's own tokenizer.json.

        Args:
            tokenizer: the artifact's tokenizer.json.
            cache: the folder for the rebuilt vocabulary; ``None`` means the user's cache.

        Raises:
            ArtifactError: the tokenizer is not gpt-oss's.
            ResourceError: the cache cannot be written.
            BackendError: openai-harmony rejects the vocabulary.
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
        """Renders a conversation as the prompt for the assistant's next message.

        Reasoning of earlier turns is left out. Reasoning since the last answer is kept, because tool calls depend
        on it.

        Args:
            messages: at least one. Leading system and developer messages become the instructions.
            tools: the functions that the model may call.
            effort: the reasoning effort.
            date: the current date to tell the model, if any.
            response_format: the required format of the answer; its schema is told to the model unless it allows any
                JSON object.

        Returns:
            The prompt's token ids.

        Raises:
            InvalidRequest: there are no messages, the effort is unknown, or openai-harmony cannot render something.
        """
        if effort not in EFFORTS:
            raise InvalidRequest(f"unknown effort {effort!r}", remedy=f"Use one of: {', '.join(EFFORTS)}.")
        if not messages:
            raise InvalidRequest("the conversation is empty", remedy="Add at least one message.")
        try:
            rendered = _to_harmony_messages(messages, tools, effort, date, response_format)
            ids: list[int] = self._encoding.render_conversation_for_completion(
                oh.Conversation(messages=rendered),
                oh.Role.ASSISTANT,
                oh.RenderConversationConfig(auto_drop_analysis=False),
            )
        except (oh.HarmonyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            raise InvalidRequest(f"the conversation cannot be rendered: {error}") from error
        return ids

    def encode(self, text: str) -> list[int]:
        """Encodes text without special tokens; lone surrogates become U+FFFD."""
        pieces = (self._encoding.encode(piece, disallowed_special=()) for piece in _split_runs(_to_valid_unicode(text)))
        return [token for ids in pieces for token in ids]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Decodes ids to text, with special tokens by name and invalid UTF-8 as U+FFFD.

        Raises:
            InvalidRequest: an id is outside the vocabulary.
        """
        try:
            text: str = self._encoding.decode(list(token_ids))
        except (oh.HarmonyError, OverflowError, TypeError) as error:
            raise InvalidRequest(f"the ids cannot be decoded: {error}") from error
        return text

    def token_bytes(self, token: int) -> bytes:
        """Returns the bytes of one id, which may be part of a character; a special token's are its name.

        Raises:
            InvalidRequest: the id is outside the vocabulary.
        """
        try:
            return bytes(self._encoding._inner.decode_bytes([token]))  # the public API decodes to text only
        except (oh.HarmonyError, OverflowError, TypeError) as error:
            raise InvalidRequest(f"id {token!r} cannot be decoded: {error}") from error

    def parser(self) -> HarmonyParser:
        """Creates a parser for one answer."""
        return HarmonyParser(lambda in_message: _StreamDecoder(self._encoding, in_message))


class _StreamDecoder:
    """A ``MessageDecoder`` on openai-harmony's StreamableParser, whose exceptions become return values.

    Args:
        encoding: openai-harmony's.
        in_message: start after ``<|start|>assistant`` instead of at ``<|start|>``.
    """

    def __init__(self, encoding: Any, in_message: bool) -> None:
        self._encoding = encoding
        self._parser = oh.StreamableParser(encoding, oh.Role.ASSISTANT if in_message else None, strict=False)

    def feed(self, token: int) -> bool:
        try:
            self._parser.process(token)
        except (oh.HarmonyError, ValueError, RuntimeError):
            return False
        return True

    def end(self) -> bool:
        try:
            self._parser.process_eos()
        except (oh.HarmonyError, ValueError, RuntimeError):
            return False
        return True

    @property
    def state(self) -> Literal["start", "header", "content"]:
        state = self._parser.state
        if state == oh.StreamState.EXPECT_START:
            return "start"
        return "content" if state == oh.StreamState.CONTENT else "header"

    @property
    def content_delta(self) -> str:
        return self._parser.last_content_delta or ""

    @property
    def current(self) -> DecodedMessage:
        parser = self._parser
        return DecodedMessage(
            parser.current_role == oh.Role.ASSISTANT, parser.current_channel, parser.current_recipient
        )

    @property
    def last(self) -> DecodedMessage | None:
        messages = self._parser.messages
        if not messages:
            return None
        message = messages[-1]
        text = "".join(part.text for part in message.content if isinstance(part, oh.TextContent))
        return DecodedMessage(message.author.role == oh.Role.ASSISTANT, message.channel, message.recipient, text)

    @property
    def header_text(self) -> str:
        header = self._parser.state_data.get("header_tokens", [])
        if not header or any(self._encoding.is_special_token(token) for token in header):
            return ""
        text: str = self._encoding.decode(header)
        return text


def _to_harmony_messages(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    effort: Effort,
    date: datetime.date | None,
    response_format: ResponseFormat | None,
) -> list[Any]:
    """Converts messages to openai-harmony's, behind the system and developer messages that the format starts with."""
    system = oh.SystemContent.new().with_reasoning_effort(oh.ReasoningEffort(effort.capitalize()))
    if date is not None:
        system = system.with_conversation_start_date(date.isoformat())
    rendered = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    leading = 0
    while leading < len(messages) and messages[leading].role in ("system", "developer"):
        leading += 1
    parts = [_to_valid_unicode(message.content) for message in messages[:leading]]
    if response_format is not None and response_format.schema != JSON_OBJECT.schema:
        parts.append(_format_section(response_format))
    instructions = _check_runs("\n\n".join(parts))
    if instructions or tools:
        developer = oh.DeveloperContent(instructions=instructions or None)
        if tools:
            developer = developer.with_function_tools([_describe_tool(tool) for tool in tools])
        rendered.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
    last_final = max((index for index, message in enumerate(messages) if message.is_final), default=-1)
    for index, message in enumerate(messages[leading:], start=leading):
        rendered += _to_harmony(message, with_reasoning=index > last_final)
    return rendered


def _format_section(response_format: ResponseFormat) -> str:
    lines = ["# Response Formats", "", f"## {response_format.name}", ""]
    if response_format.description:
        lines += [f"// {_to_valid_unicode(response_format.description)}"]
    schema = json.dumps(_check_json(dict(response_format.schema)), ensure_ascii=False, separators=(",", ":"))
    return "\n".join([*lines, schema])


def _to_harmony(message: Message, *, with_reasoning: bool) -> list[Any]:
    """The openai-harmony messages of one message: several for an assistant's, which has channels."""
    content = _to_valid_unicode(message.content)
    if message.role == "user":
        return [oh.Message.from_role_and_contents(oh.Role.USER, _to_text_contents(content))]
    if message.role in ("system", "developer"):
        developer = oh.DeveloperContent(instructions=_check_runs(content))
        return [oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer)]
    if message.role == "tool":
        author = oh.Author.new(oh.Role.TOOL, f"{FUNCTIONS_NAMESPACE}{message.name}")
        result = oh.Message(author=author, content=_to_text_contents(content))
        return [result.with_channel("commentary").with_recipient("assistant")]
    parts = []
    if message.reasoning and with_reasoning:
        parts.append(_assistant_message(_to_valid_unicode(message.reasoning), "analysis"))
    if content:
        parts.append(_assistant_message(content, "commentary" if message.tool_calls else "final"))
    for call in message.tool_calls:
        part = _assistant_message(_to_valid_unicode(call.arguments), "commentary")
        part = part.with_recipient(f"{FUNCTIONS_NAMESPACE}{call.name}")
        parts.append(part.with_content_type("<|constrain|>json"))
    return parts


def _assistant_message(text: str, channel: str) -> Any:
    return oh.Message.from_role_and_contents(oh.Role.ASSISTANT, _to_text_contents(text)).with_channel(channel)


def _describe_tool(tool: Tool) -> Any:
    parameters = None if tool.parameters is None else _check_json(dict(tool.parameters))
    return oh.ToolDescription.new(tool.name, _check_runs(_to_valid_unicode(tool.description)), parameters=parameters)


def _to_text_contents(text: str) -> list[Any]:
    """A message's text in pieces; the format joins them again without a separator."""
    return [oh.TextContent(text=piece) for piece in _split_runs(text)]


def _split_runs(text: str) -> list[str]:
    """Splits text inside long runs without a break."""
    cuts = [0]
    for run in _LONG_RUNS.finditer(text):
        cuts += range(run.start() + _PIECE_LENGTH, run.end(), _PIECE_LENGTH)
    return [text[start:end] for start, end in pairwise([*cuts, len(text)])]


def _check_runs(text: str) -> str:
    """Returns text that must be passed in one piece.

    Raises:
        InvalidRequest: a run without a break is too long to tokenise in reasonable time.
    """
    if any(run.end() - run.start() > _MAX_RUN for run in _LONG_RUNS.finditer(text)):
        raise InvalidRequest(
            f"instructions or a tool's description have more than {_MAX_RUN:,} characters without a break",
            remedy="Send such data as a user's message.",
        )
    return text


def _to_valid_unicode(text: str) -> str:
    """Makes text encodable as UTF-8: surrogate pairs become their character, lone surrogates U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _check_json(value: Any) -> Any:
    """Applies ``_to_valid_unicode`` and ``_check_runs`` to every string in JSON values."""
    if isinstance(value, str):
        return _check_runs(_to_valid_unicode(value))
    if isinstance(value, dict):
        return {_to_valid_unicode(str(key)): _check_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_check_json(item) for item in value]
    return value
