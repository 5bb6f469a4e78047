"""What a turn may look like, as a grammar: which tools may be called, and what the answer has to be.

Written for everything an assistant says after ``<|start|>assistant``, in harmony, with llguidance's syntax: analysis
and preambles stay free, so the grammar leaves a model the way it was trained to take. Plain text out of a request;
needs no model, and knows nothing of token ids.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from gptoss_runtime.chat.conversation import JSON_OBJECT, ResponseFormat, Tool
from gptoss_runtime.engine.grammar import check_schema
from gptoss_runtime.engine.json_schema import remove_costly_keywords, to_grammar_text
from gptoss_runtime.engine.options import MAX_GRAMMAR
from gptoss_runtime.errors import InvalidRequest

ToolChoice = Literal["auto", "none", "required"]

# gpt-oss writes a call's recipient before or after the channel, and the content type with or without <|constrain|>.
_FRAME = """\
start: {turn}
said: <|channel|> ("analysis" | "commentary") <|message|> text <|end|> <|start|> "assistant"
text: TEXT
TEXT: /(?s:.*)/
typed: " "? <|constrain|> "json" | " json" | " code" | ""
"""
_FINAL = """\
final: <|channel|> "final" <|message|> text <|return|>
"""
_FINAL_JSON = """\
final: <|channel|> "final" (" "? <|constrain|> "json")? <|message|> answer <|return|>
answer: %json {schema}
"""
_CALL = """\
call_{index}: <|channel|> ("commentary" | "analysis") " to=functions.{name}" rest_{index}
    | " to=functions.{name}" " "? <|channel|> ("commentary" | "analysis") rest_{index}
rest_{index}: typed <|message|> arguments_{index} <|call|>
arguments_{index}: %json {schema}
"""
_MAX_SCHEMA = 128 * 1024  # characters of JSON
_MOST_SAID = 8  # messages before a call that has to come: a model that would rather answer might go on for ever


def turn_grammar(
    *,
    tools: Sequence[Tool] = (),
    tool_choice: ToolChoice = "auto",
    allowed: Sequence[str] | None = None,
    response_format: ResponseFormat | None = None,
) -> str | None:
    """The grammar of one turn, for ``GenerationOptions.grammar``.

    Args:
        tools: what the model was told of.
        tool_choice: "none": no call is possible. "auto": a call, or an answer. "required": the turn ends with a call.
            A call is one, as gpt-oss ends its turn with it; its arguments match the tool's schema.
        allowed: names of the tools that may be called; ``None``: all. "required" and one name is a named choice.
        response_format: what the answer has to be; ``None``: text.

    Returns:
        ``None`` where there is nothing to enforce: "auto" without tools and without a response format.

    Raises:
        InvalidRequest: "required" without a tool to call, an unknown name, two tools of one name, or a schema that
            cannot be enforced although it is strict (a response format's is).
        BackendUnavailable: llguidance is not installed.
    """
    callable_tools = _callable(tools, tool_choice, allowed)
    if tool_choice == "auto" and not callable_tools and response_format is None:
        return None
    endings = [f"call_{index}" for index in range(len(callable_tools))]
    parts = [_call(index, tool) for index, tool in enumerate(callable_tools)]
    if tool_choice == "required":
        said = f"said{{0,{_MOST_SAID}}}"
    else:
        said = "said*"
        endings.append("final")
        parts.append(_final(response_format))
    grammar = "".join([_FRAME.format(turn=f"{said} ({' | '.join(endings)})"), *parts])
    if len(grammar) > MAX_GRAMMAR:
        raise InvalidRequest(
            f"the schemas of {len(callable_tools)} tools make a grammar of {len(grammar):,} characters",
            remedy=f"Keep it to {MAX_GRAMMAR:,}: offer fewer tools, or let fewer be called.",
        )
    return grammar


def _callable(tools: Sequence[Tool], choice: ToolChoice, allowed: Sequence[str] | None) -> list[Tool]:
    by_name = {tool.name: tool for tool in tools}
    if len(by_name) < len(tools):
        raise InvalidRequest("two tools have the same name", remedy="Give every tool a name of its own.")
    if choice not in ("auto", "none", "required"):
        raise InvalidRequest(f"unknown tool_choice {str(choice)[:80]!r}", remedy="Use auto, none or required.")
    for name in allowed or ():
        if name not in by_name:
            raise InvalidRequest(
                f"tool_choice names {str(name)[:80]!r}, which is not among the tools", remedy="Add it to the tools."
            )
    chosen = [] if choice == "none" else [tool for tool in tools if allowed is None or tool.name in allowed]
    if choice == "required" and not chosen:
        raise InvalidRequest("tool_choice requires a call and there is no tool", remedy="Add a tool.")
    return chosen


def _call(index: int, tool: Tool) -> str:
    parameters: dict[str, Any] = {"additionalProperties": False} if tool.parameters is None else dict(tool.parameters)
    schema = parameters if "type" in parameters else {"type": "object", **parameters}
    text = _enforceable(schema, what=f"tools[{tool.name}].parameters", strict=tool.strict)
    return _CALL.format(index=index, name=tool.name, schema=text)


def _final(response_format: ResponseFormat | None) -> str:
    if response_format is None:
        return _FINAL
    return _FINAL_JSON.format(schema=_enforceable(response_format.schema, what="response_format", strict=True))


def _enforceable(schema: Mapping[str, Any], *, what: str, strict: bool) -> str:
    """The schema as it goes after ``%json`` in a grammar.

    Args:
        schema: as the client sent it.
        what: its name in errors: "response_format", "tools[f].parameters".
        strict: refuse a schema with anything that cannot be enforced. Otherwise unknown keywords are left out, then
            costly ones too, and what cannot be enforced even so is any JSON object.

    Raises:
        InvalidRequest: strict, and it cannot be enforced; or it is not JSON, or too large to be looked at.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not a JSON schema: {error}", remedy="Pass a JSON object.") from error
    if len(text) <= _MAX_SCHEMA:
        return _compiled(text, what, strict)
    if strict:
        raise InvalidRequest(
            f"{what} is a JSON schema of {len(text):,} characters", remedy=f"Keep it to {_MAX_SCHEMA:,} characters."
        )
    return to_grammar_text(JSON_OBJECT.schema, lenient=True)


@functools.lru_cache(maxsize=256)
def _compiled(text: str, what: str, strict: bool) -> str:
    """See ``_enforceable``; clients send the same schemas with every request."""
    schema = json.loads(text)
    if strict:
        check_schema(schema, what=what, lenient=False)
        return to_grammar_text(schema, lenient=False)
    for whole in (True, False):
        with suppress(InvalidRequest, RecursionError):
            simpler = schema if whole else remove_costly_keywords(schema)
            check_schema(simpler, what=what, lenient=True)
            return to_grammar_text(simpler, lenient=True)
    return to_grammar_text(JSON_OBJECT.schema, lenient=True)
