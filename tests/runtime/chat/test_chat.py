from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from gptoss_runtime import (
    Chat,
    ChatEvent,
    ContentDelta,
    ContextOverflow,
    Engine,
    Finish,
    GenerationOptions,
    InvalidRequest,
    Message,
    ReasoningDelta,
    Tool,
    ToolCall,
    ToolResult,
)
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine.scripted import ScriptedEngine
from gptoss_runtime.harmony_tokens import ENDOFTEXT, STOP_TOKENS
from tests.harmony_tools import encode_marked

GREEDY = GenerationOptions(temperature=0)
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1, "b": 2}<|call|>'
ANSWER = "<|channel|>analysis<|message|>Sum.<|end|><|start|>assistant<|channel|>final<|message|>3<|return|>"


def scripted(harmony: Harmony, *answers: str, tools: Sequence[Tool] = (), **settings: object) -> Chat:
    scripts = [encode_marked(harmony, answer) for answer in answers]
    return Chat(ScriptedEngine(scripts), harmony, tools=tools, options=GREEDY, **settings)  # type: ignore[arg-type]


def adder(a: int, b: int) -> int:
    return a + b


def test_a_turn_is_added_to_the_conversation(harmony: Harmony) -> None:
    chat = scripted(harmony, ANSWER, ANSWER, instructions="Add.", effort="low")
    reply = chat.send("1+2?")
    assert (reply.content, reply.reasoning, reply.finish.reason) == ("3", "Sum.", "stop")
    assert chat.messages == [Message("developer", "Add."), Message("user", "1+2?"), Message("assistant", "3", "Sum.")]
    chat.send("Again?")
    prompt = harmony.decode(chat.engine.prompts[1])  # type: ignore[attr-defined]
    assert "Reasoning: low" in prompt
    assert "Sum." not in prompt
    assert prompt.endswith("<|channel|>final<|message|>3<|end|><|start|>user<|message|>Again?<|end|><|start|>assistant")
    chat.reset()
    assert chat.messages == [Message("developer", "Add.")]


def test_tools_with_functions_are_run(harmony: Harmony) -> None:
    chat = scripted(harmony, CALL, ANSWER, tools=[Tool("add", "Adds.", function=adder)])
    events = list(chat.stream("1+2?"))
    assert ToolCall("add", '{"a": 1, "b": 2}') in events
    assert ToolResult("add", "3") in events
    assert [event for event in events if isinstance(event, Finish)] == [events[-1]]
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool", "assistant"]


def test_tools_without_functions_are_left_to_the_caller(harmony: Harmony) -> None:
    chat = scripted(harmony, CALL, ANSWER, tools=[Tool("add")])
    reply = chat.send("1+2?")
    assert reply.finish.reason == "tool_calls"
    assert reply.tool_calls == (ToolCall("add", '{"a": 1, "b": 2}'),)
    with pytest.raises(InvalidRequest, match="nothing to answer"):
        chat.stream()
    chat.add_tool_result("add", "3")
    events = list(chat.stream())
    assert ContentDelta("3") in events
    assert ReasoningDelta("Sum") in events


def test_a_turn_ends_at_harmonys_stop_tokens(harmony: Harmony) -> None:
    """A model that continues after its tool call would invent the result."""
    assert set(STOP_TOKENS) == {*harmony._encoding.stop_tokens_for_assistant_actions(), ENDOFTEXT}
    reply = scripted(harmony, CALL + "<|start|>assistant" + ANSWER, tools=[Tool("add")]).send("1+2?")
    assert reply.finish.reason == "tool_calls"
    assert reply.content == ""


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (CALL.replace('{"a": 1, "b": 2}', "{"), "JSONDecodeError"),
        (CALL.replace('{"a": 1, "b": 2}', "[1]"), "not a JSON object"),
        (CALL.replace('"a"', '"z"'), "TypeError"),
        (CALL.replace("functions.add", "functions.sub"), "no tool sub"),
    ],
)
def test_bad_tool_calls_give_the_model_an_error_result(harmony: Harmony, call: str, words: str) -> None:
    chat = scripted(harmony, call, ANSWER, tools=[Tool("add", function=adder)])
    results = [event for event in chat.stream("x") if isinstance(event, ToolResult)]
    assert len(results) == 1
    assert results[0].failed
    assert words in results[0].content


def test_max_steps_limits_tool_calls(harmony: Harmony) -> None:
    chat = scripted(harmony, *[CALL] * 9, tools=[Tool("add", function=adder)], max_steps=3)
    events = list(chat.stream("x"))
    assert sum(isinstance(event, ToolCall) for event in events) == 3
    assert isinstance(events[-1], Finish)
    assert events[-1].reason == "tool_calls"
    with pytest.raises(InvalidRequest, match="max_steps"):
        scripted(harmony, max_steps=0)


def test_cancelled_and_abandoned_turns_leave_the_conversation_unchanged(harmony: Harmony) -> None:
    chat = scripted(harmony, ANSWER, ANSWER, ANSWER)
    seen: list[ChatEvent] = []
    for event in chat.stream("x"):
        seen.append(event)
        chat.cancel()
    assert isinstance(seen[-1], Finish)
    assert seen[-1].reason == "cancelled"
    assert chat.messages == []
    for _ in chat.stream("x"):
        break
    assert chat.messages == []
    assert chat.send("x").content == "3"


def test_an_answer_cut_by_max_new_tokens(harmony: Harmony) -> None:
    chat = scripted(harmony, ANSWER)
    chat.options = GenerationOptions(temperature=0, max_new_tokens=4)
    reply = chat.send("x")
    assert reply.finish.reason == "length"
    assert not reply.finish.malformed
    assert chat.messages[-1].reasoning == reply.reasoning


def test_a_context_overflow_keeps_the_conversation(harmony: Harmony) -> None:
    chat = scripted(harmony, ANSWER)
    before = list(chat.messages)
    with pytest.raises(ContextOverflow):
        chat.send("word " * 5000)
    assert chat.messages == before


def test_a_conversation_with_nano_reuses_the_cache(engine: Engine, harmony: Harmony) -> None:
    chat = Chat(engine, harmony, options=GenerationOptions(temperature=0, max_new_tokens=48))
    first = chat.send("hello")
    second = chat.send("thanks")
    assert first.finish.result is not None
    assert second.finish.result is not None
    assert second.finish.result.usage.cached_tokens >= first.finish.result.usage.prompt_tokens - 1


def test_chat_load(nano_artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss_runtime.artifact.vocabulary.platformdirs.user_cache_dir", lambda *_, **__: str(cache))
    chat = Chat.load(nano_artifact, threads=1, effort="high", context_length=128)
    with chat.engine:
        assert chat.effort == "high"
        assert chat.engine.info.context_length == 128
