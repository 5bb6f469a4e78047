"""Renders a turn's prompt within the context length, and prepares what the engine needs to answer it.

Knows conversations, harmony and engines; knows nothing of threads or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gptoss_runtime.chat.conversation import Message
from gptoss_runtime.chat.turn_grammar import build_turn_grammar
from gptoss_runtime.engine.base import Engine
from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.errors import ContextOverflow
from gptoss_runtime.harmony_tokens import STOP_TOKENS
from gptoss_runtime.server.turn_request import TurnRequest

if TYPE_CHECKING:
    from gptoss_runtime.chat.harmony import Harmony

_TYPICAL_CHARACTERS = 4  # per token; longer text is counted before it is rendered, as rendering cannot be interrupted
_COUNTED_AT_ONCE = 2**14  # characters; between them other threads get to run


def prepare_generation(engine: Engine, harmony: Harmony, request: TurnRequest) -> tuple[list[int], GenerationOptions]:
    """Prepares a request for the engine.

    Returns:
        The prompt's ids, and the request's options with its grammar and harmony's stop tokens.

    Raises:
        InvalidRequest: it cannot be rendered, or its formats cannot be enforced.
        ContextOverflow: the prompt leaves no room for an answer.
    """
    grammar = build_turn_grammar(
        tools=request.tools,
        tool_choice=request.tool_choice,
        allowed=request.allowed_tools,
        response_format=request.response_format,
    )
    options = replace(request.options, grammar=grammar, stop_token_ids=STOP_TOKENS)
    return render_prompt(engine, harmony, request), options


def warm_up(engine: Engine, harmony: Harmony) -> None:
    """Generates one token, so that the first client does not pay for lazy initialization.

    Raises:
        GptOssError: the engine does not work.
    """
    ids = render_prompt(engine, harmony, TurnRequest((Message("user", ""),)))
    with engine.generate(ids, GenerationOptions(max_new_tokens=1)) as generation:
        for _ in generation:
            pass


def render_prompt(engine: Engine, harmony: Harmony, request: TurnRequest) -> list[int]:
    """Renders the prompt's ids, without the oldest turns if it would not fit and ``drop_oldest`` allows that.

    Raises:
        InvalidRequest: it cannot be rendered.
        ContextOverflow: it leaves no room for an answer.
    """
    messages = list(request.messages)
    while True:
        try:
            return _render_within_context(engine, harmony, replace(request, messages=tuple(messages)))
        except ContextOverflow:
            if not request.drop_oldest or not _drop_oldest_turn(messages):
                raise


def _render_within_context(engine: Engine, harmony: Harmony, request: TurnRequest) -> list[int]:
    context_length = engine.info.context_length
    texts = [text for message in request.messages for text in (message.content, message.reasoning)]
    if sum(map(len, texts)) > context_length * _TYPICAL_CHARACTERS:
        _check_token_count(harmony, texts, context_length)
    ids = harmony.render(
        request.messages,
        tools=request.tools,
        effort=request.effort,
        date=request.date,
        response_format=request.response_format,
    )
    if len(ids) >= context_length:
        raise _context_overflow(f"{len(ids):,} tokens", context_length)
    return ids


def _check_token_count(harmony: Harmony, texts: Sequence[str], context_length: int) -> None:
    """Raises as soon as the texts have more tokens than the context holds."""
    count = 0
    for text in texts:
        for start in range(0, len(text), _COUNTED_AT_ONCE):
            count += len(harmony.encode(text[start : start + _COUNTED_AT_ONCE]))
            if count > context_length:
                raise _context_overflow(f"more than {count:,} tokens", context_length)


def _context_overflow(length: str, context_length: int) -> ContextOverflow:
    return ContextOverflow(
        f"the conversation has {length} and the context holds {context_length:,} tokens with the answer",
        remedy="Shorten it, or start a new one.",
    )


def _drop_oldest_turn(messages: list[Message]) -> bool:
    """Removes the first user message and all replies to it; returns False if only the last turn is left."""
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    if len(starts) < 2:
        return False
    del messages[starts[0] : starts[1]]
    return True
