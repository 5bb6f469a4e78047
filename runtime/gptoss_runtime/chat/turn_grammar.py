"""Grammars for an assistant's turn in harmony: which tools it may call, and the format of its answer.

A grammar covers everything after ``<|start|>assistant``, in llguidance's syntax. Reasoning and preambles are not
restricted, so the model can work as it was trained. Builds text from a request; knows nothing of models or token ids.
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
message: <|channel|> ("analysis" | "commentary") <|message|> text <|end|> <|start|> "assistant"
text: TEXT
TEXT: /(?s:.*)/
content_type: " "? <|constrain|> "json" | " json" | " code" | ""
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
rest_{index}: content_type <|message|> arguments_{index} <|call|>
arguments_{index}: %json {schema}
"""
_MAX_SCHEMA = 128 * 1024  # characters of JSON
_MAX_MESSAGES = 8  # before a required call; without a limit, a model that would rather answer might never call


def build_turn_grammar(
    *,
    tools: Sequence[Tool] = (),
    tool_choice: ToolChoice = "auto",
    allowed: Sequence[str] | None = None,
    response_format: ResponseFormat | None = None,
) -> str | None:
    """Builds the grammar of one turn, for ``GenerationOptions.grammar``.

    Args:
        tools: the tools that the model was told about.
        tool_choice: "none" makes calls impossible, "auto" allows a call or an answer, "required" ends the turn with a
            call. There is at most one call, because gpt-oss ends its turn with it; its arguments match the tool's
            schema.
        allowed: names of the tools that may be called; ``None`` allows all. "required" with one name forces that tool.
        response_format: the format of the answer; ``None`` allows any text.

    Returns:
        The grammar, or ``None`` if there is nothing to enforce: "auto" without tools and without a response format.

    Raises:
        InvalidRequest: "required" without a callable tool, an unknown tool name, a duplicate tool name, or a strict
            schema that cannot be enforced (a response format's schema is always strict).
        BackendUnavailable: llguidance is not installed.
    """
    callable_tools = _select_callable(tools, tool_choice, allowed)
    if tool_choice == "auto" and not callable_tools and response_format is None:
        return None
    endings = [f"call_{index}" for index in range(len(callable_tools))]
    rules = [_format_call(index, tool) for index, tool in enumerate(callable_tools)]
    if tool_choice == "required":
        messages = f"message{{0,{_MAX_MESSAGES}}}"
    else:
        messages = "message*"
        endings.append("final")
        rules.append(_format_final(response_format))
    grammar = "".join([_FRAME.format(turn=f"{messages} ({' | '.join(endings)})"), *rules])
    if len(grammar) > MAX_GRAMMAR:
        raise InvalidRequest(
            f"the schemas of {len(callable_tools)} tools need a grammar of {len(grammar):,} characters",
            remedy=f"At most {MAX_GRAMMAR:,} are supported: pass fewer tools, or allow fewer of them.",
        )
    return grammar


def _select_callable(tools: Sequence[Tool], choice: ToolChoice, allowed: Sequence[str] | None) -> list[Tool]:
    by_name = {tool.name: tool for tool in tools}
    if len(by_name) < len(tools):
        raise InvalidRequest("two tools have the same name", remedy="Give every tool a different name.")
    if choice not in ("auto", "none", "required"):
        raise InvalidRequest(f"unknown tool_choice {str(choice)[:80]!r}", remedy="Use auto, none or required.")
    for name in allowed or ():
        if name not in by_name:
            raise InvalidRequest(
                f"tool_choice names {str(name)[:80]!r}, which is not among the tools", remedy="Add it to the tools."
            )
    chosen = [] if choice == "none" else [tool for tool in tools if allowed is None or tool.name in allowed]
    if choice == "required" and not chosen:
        raise InvalidRequest("tool_choice requires a call, but there is no tool to call", remedy="Add a tool.")
    return chosen


def _format_call(index: int, tool: Tool) -> str:
    parameters: dict[str, Any] = {"additionalProperties": False} if tool.parameters is None else dict(tool.parameters)
    schema = parameters if "type" in parameters else {"type": "object", **parameters}
    text = _enforce_schema(schema, what=f"tools[{tool.name}].parameters", strict=tool.strict)
    return _CALL.format(index=index, name=tool.name, schema=text)


def _format_final(response_format: ResponseFormat | None) -> str:
    if response_format is None:
        return _FINAL
    return _FINAL_JSON.format(schema=_enforce_schema(response_format.schema, what="response_format", strict=True))


def _enforce_schema(schema: Mapping[str, Any], *, what: str, strict: bool) -> str:
    """Returns the schema's text after ``%json`` in a grammar.

    Args:
        schema: as the client sent it.
        what: its name in errors: "response_format", "tools[f].parameters".
        strict: reject a schema that cannot be enforced exactly. Otherwise unsupported keywords are ignored, then costly
            ones removed; if that is not enough, any JSON object is accepted.

    Raises:
        InvalidRequest: it is not JSON; or it is strict, and too large or not enforceable.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not a JSON schema: {error}", remedy="Pass a JSON object.") from error
    if len(text) <= _MAX_SCHEMA:
        return _simplify_schema(text, what, strict)
    if strict:
        raise InvalidRequest(
            f"{what} is a JSON schema of {len(text):,} characters", remedy=f"Use at most {_MAX_SCHEMA:,} characters."
        )
    return to_grammar_text(JSON_OBJECT.schema, lenient=True)


@functools.lru_cache(maxsize=256)
def _simplify_schema(text: str, what: str, strict: bool) -> str:
    """See ``_enforce_schema``. Cached, because clients send the same schemas with every request."""
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
