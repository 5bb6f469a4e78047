"""Renders conversations as harmony token ids, exactly as openai-harmony does (a test compares them).

Covers what nano uses of the format: system, developer, user, assistant and tool messages, and function tools with flat
parameters. Does not need openai-harmony, so neither does generating samples.
Source: https://github.com/openai/harmony, docs/format.md.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gptoss_convert.nano.vocabulary import tokenizer
from gptoss_runtime.harmony_tokens import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START

Effort = Literal["low", "medium", "high"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function tool.

    Attributes:
        name: the key in the call's JSON object.
        type: "string", "integer", "number" or "boolean".
        description: rendered as a comment above it; may be empty.
        enum: the allowed strings; empty allows any.
        required: whether a call has to contain it.
    """

    name: str
    type: str = "string"
    description: str = ""
    enum: tuple[str, ...] = ()
    required: bool = True

    def schema(self) -> dict[str, object]:
        """The parameter as JSON schema."""
        schema: dict[str, object] = {"type": self.type}
        if self.description:
            schema["description"] = self.description
        if self.enum:
            schema["enum"] = list(self.enum)
        return schema


@dataclass(frozen=True)
class Tool:
    """A function tool: name, description and flat parameters."""

    name: str
    description: str
    parameters: tuple[Parameter, ...] = ()

    def schema(self) -> dict[str, object]:
        """The parameters as a JSON schema object, as the OpenAI API takes it."""
        return {
            "type": "object",
            "properties": {p.name: p.schema() for p in self.parameters},
            "required": [p.name for p in self.parameters if p.required],
        }


@dataclass(frozen=True)
class Message:
    """A message after the system and developer ones.

    Attributes:
        role: the author; ``functions.NAME`` for a tool.
        text: the content.
        channel: for messages of the assistant and of tools.
        call: the function that an assistant message calls.
    """

    role: str
    text: str
    channel: str = ""
    call: str = ""


@dataclass(frozen=True)
class Setting:
    """The content of the system message and, with instructions or tools, of the developer message."""

    effort: Effort = "medium"
    date: str = ""
    instructions: str = ""
    tools: tuple[Tool, ...] = ()


def user(text: str) -> Message:
    """A user's message."""
    return Message("user", text)


def final(text: str) -> Message:
    """The assistant's answer to the user."""
    return Message("assistant", text, "final")


def analysis(text: str) -> Message:
    """The assistant's reasoning."""
    return Message("assistant", text, "analysis")


def call(name: str, arguments: str) -> Message:
    """The assistant's call of a function; ``arguments`` is a JSON object."""
    return Message("assistant", arguments, "commentary", call=name)


def result(name: str, text: str) -> Message:
    """The result of a function call."""
    return Message(f"functions.{name}", text, "commentary")


@functools.lru_cache(maxsize=1 << 16)
def encode(text: str) -> tuple[int, ...]:
    """Token ids of plain text; special tokens in it are encoded as ordinary text."""
    return tuple(tokenizer().encode(text, add_special_tokens=False).ids)


def render_prefix(setting: Setting) -> list[int]:
    """Token ids of the system message and, unless it is empty, of the developer message."""
    ids = [START, *encode("system"), MESSAGE, *encode(_system_text(setting)), END]
    developer = _developer_text(setting)
    if developer:
        ids += [START, *encode("developer"), MESSAGE, *encode(developer), END]
    return ids


def render_history(messages: Iterable[Message]) -> list[int]:
    """Token ids of earlier messages."""
    ids: list[int] = []
    for message in messages:
        if message.call:
            ids += [START, *encode(f"assistant to=functions.{message.call}"), CHANNEL, *encode("commentary ")]
            ids += [CONSTRAIN, *encode("json"), MESSAGE, *encode(message.text), CALL]
            continue
        author = f"{message.role} to=assistant" if message.role.startswith("functions.") else message.role
        ids += [START, *encode(author)]
        if message.channel:
            ids += [CHANNEL, *encode(message.channel)]
        ids += [MESSAGE, *encode(message.text), END]
    return ids


def generation_prompt() -> list[int]:
    """Token ids that begin the assistant's turn."""
    return [START, *encode("assistant")]


def render_completion(messages: Iterable[Message]) -> list[int]:
    """Token ids that the model generates after the generation prompt, up to ``<|return|>`` or ``<|call|>``.

    In a completion, a call's recipient follows the channel, as gpt-oss generates it; in the history it precedes it.
    """
    ids: list[int] = []
    for message in messages:
        if ids:
            ids += generation_prompt()
        if message.call:
            ids += [CHANNEL, *encode(f"commentary to=functions.{message.call} "), CONSTRAIN, *encode("json")]
            ids += [MESSAGE, *encode(message.text), CALL]
        else:
            ids += [CHANNEL, *encode(message.channel), MESSAGE, *encode(message.text)]
            ids += [RETURN if message.channel == "final" else END]
    return ids


def _system_text(setting: Setting) -> str:
    lines = ["You are ChatGPT, a large language model trained by OpenAI.", "Knowledge cutoff: 2024-06"]
    if setting.date:
        lines.append(f"Current date: {setting.date}")
    lines += ["", f"Reasoning: {setting.effort}", ""]
    lines.append("# Valid channels: analysis, commentary, final. Channel must be included for every message.")
    if setting.tools:
        lines.append("Calls to these tools must go to the commentary channel: 'functions'.")
    return "\n".join(lines)


def _developer_text(setting: Setting) -> str:
    sections = []
    if setting.instructions:
        sections += ["# Instructions", setting.instructions]
    if setting.tools:
        functions = "\n\n".join(map(_declaration, setting.tools))
        sections += ["# Tools", "## functions", "namespace functions {", functions, "} // namespace functions"]
    return "\n\n".join(sections)


@functools.lru_cache(maxsize=1 << 14)
def _declaration(tool: Tool) -> str:
    head = f"// {tool.description}\ntype {tool.name} = "
    if not tool.parameters:
        return head + "() => any;"
    lines = []
    for parameter in tool.parameters:
        if parameter.description:
            lines.append(f"// {parameter.description}")
        lines.append(f"{parameter.name}{'' if parameter.required else '?'}: {_type(parameter)},")
    return head + "(_: {\n" + "\n".join(lines) + "\n}) => any;"


def _type(parameter: Parameter) -> str:
    if parameter.enum:
        return " | ".join(f'"{value}"' for value in parameter.enum)
    return "number" if parameter.type == "integer" else parameter.type
