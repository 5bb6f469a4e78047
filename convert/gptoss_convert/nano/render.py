"""Conversations as harmony token ids, the way openai-harmony renders them (a test compares the two).

Knows the harmony format as far as nano speaks it: system, developer, user, assistant and tool messages, function tools
whose parameters are flat. Knows nothing of what is said. Free of openai-harmony, so that generating samples needs none.
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
        description: a comment above it; empty for none.
        enum: the allowed strings; empty for any.
        required: whether a call must give it.
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
        role: who speaks; a tool speaks as ``functions.NAME``.
        text: the content.
        channel: of the assistant's and tools' messages.
        call: name of the function an assistant message calls.
    """

    role: str
    text: str
    channel: str = ""
    call: str = ""


@dataclass(frozen=True)
class Setting:
    """What stands before the conversation: the system message and, with instructions or tools, the developer's."""

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
    """The assistant's call of a function with a JSON object."""
    return Message("assistant", arguments, "commentary", call=name)


def result(name: str, text: str) -> Message:
    """What a called function returned."""
    return Message(f"functions.{name}", text, "commentary")


@functools.lru_cache(maxsize=1 << 16)
def encode(text: str) -> tuple[int, ...]:
    """Token ids of plain text; text that looks like a special token stays text."""
    return tuple(tokenizer().encode(text, add_special_tokens=False).ids)


def prefix(setting: Setting) -> list[int]:
    """Token ids of the system message and, where there is something to say in it, the developer message."""
    ids = [START, *encode("system"), MESSAGE, *encode(_system_text(setting)), END]
    developer = _developer_text(setting)
    if developer:
        ids += [START, *encode("developer"), MESSAGE, *encode(developer), END]
    return ids


def history(messages: Iterable[Message]) -> list[int]:
    """Token ids of past messages."""
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
    """Token ids that hand the turn to the assistant."""
    return [START, *encode("assistant")]


def completion(messages: Iterable[Message]) -> list[int]:
    """Token ids the model itself emits after the generation prompt, up to ``<|return|>`` or ``<|call|>``.

    A call names its recipient after the channel here, as gpt-oss does; rendered as history it comes before.
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
