"""Whatever a model writes, parsed to a turn's events: a scripted model; real harmony and stop strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptoss_runtime.chat.conversation import MessageEnd, ReasoningDelta, ToolCall, ToolCallDelta
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.engine.results import FinishReason, GenerationResult, Timings, Usage
from gptoss_runtime.engine.scripted import ScriptedEngine
from gptoss_runtime.harmony_tokens import STOP_TOKENS
from gptoss_runtime.server.errors import HttpProblem
from gptoss_runtime.server.openai.tools import ToolSet, parse_tools
from gptoss_runtime.server.responses.writer import ResponseWriter
from gptoss_runtime.server.settings import Limits
from gptoss_runtime.server.turn_events import ChoiceEnd, TextDelta, TurnEvent, TurnEventParser
from tests.server.recorded import ids_of

CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"


@pytest.fixture(scope="module")
def harmony(nano_artifact: Path, vocabulary: Path) -> Harmony:
    return Harmony.load(nano_artifact / "tokenizer.json", cache=vocabulary)


def read(
    harmony: Harmony, answer: str | list[int], *, stops: list[str] | None = None, most: int = 200
) -> list[TurnEvent]:
    ids = answer if isinstance(answer, list) else ids_of(harmony, answer)
    options = GenerationOptions(max_new_tokens=most, stop_token_ids=STOP_TOKENS)
    with ScriptedEngine([ids]).generate([1], options) as generation:
        return list(TurnEventParser(harmony.parser(), stops or [], ["f"]).stream(generation))


def summarize(events: list[TurnEvent]) -> tuple[str, str, list[tuple[str, str]], str]:
    """The answer, the reasoning, the calls and why the answer ended."""
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    calls = [(event.name, event.arguments) for event in events if isinstance(event, ToolCall)]
    [end] = [event for event in events if isinstance(event, ChoiceEnd)]
    assert events[-1] is end
    return text, thought, calls, end.reason


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("<|channel|>final<|message|>Hi<|return|>", ("Hi", "", [], "stop")),
        (
            "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
            ("Hi", "Hm", [], "stop"),
        ),
        (CALL + '{"a":1}<|call|>', ("", "", [("f", '{"a":1}')], "tool_calls")),
        (CALL + "not json<|call|>", ("", "", [("f", "not json")], "tool_calls")),
        (CALL.replace(".f", ".g") + "{}<|call|>", ("{}", "", [], "stop")),  # g is not among the tools
        ("<|channel|>final Hi<|return|>", ("Hi", "", [], "stop")),  # no <|message|>
        ("<|channel|>weird<|message|>Hi<|return|>", ("Hi", "", [], "stop")),
        ("Hi there<|return|>", ("Hi there", "", [], "stop")),
        ("<|return|>", ("", "", [], "stop")),
    ],
)
def test_answers(harmony: Harmony, answer: str, expected: Any) -> None:
    assert summarize(read(harmony, answer)) == expected


def test_truncated_call_is_not_a_call(harmony: Harmony) -> None:
    events = read(harmony, CALL + '{"city":"Paris"}<|call|>', most=12)
    assert summarize(events)[2:] == ([], "length")
    assert any(isinstance(event, ToolCallDelta) for event in events)


def test_two_calls(harmony: Harmony) -> None:
    both = CALL + "{}<|end|><|start|>assistant" + CALL + '{"b":2}<|call|>'
    assert summarize(read(harmony, both))[2:] == ([("f", "{}"), ("f", '{"b":2}')], "tool_calls")


def test_truncated_character(harmony: Harmony) -> None:
    ids = [*ids_of(harmony, "<|channel|>final<|message|>Hi "), *harmony.encode("𓀀")]
    assert summarize(read(harmony, ids[:-1], most=len(ids) - 1))[0] == "Hi \ufffd"


def test_stop_strings_apply_to_the_answer_only(harmony: Harmony) -> None:
    answer = (
        "<|channel|>analysis<|message|>say END<|end|><|start|>assistant<|channel|>final<|message|>Hi END more<|return|>"
    )
    events = read(harmony, answer, stops=["END"])
    assert summarize(events) == ("Hi ", "say END", [], "stop")
    end = events[-1]
    assert isinstance(end, ChoiceEnd)
    assert end.result.finish_reason is FinishReason.CANCELLED  # at the stop string
    assert end.result.usage.new_tokens < len(ids_of(harmony, answer))
    assert summarize(read(harmony, answer, stops=["more!"]))[0] == "Hi END more"


def test_reasoning_tokens_are_counted(harmony: Harmony) -> None:
    thought = "I think 🙂𓀀 so"
    answer = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>"
    end = read(harmony, answer)[-1]
    assert isinstance(end, ChoiceEnd)
    assert end.reasoning_tokens == len(harmony.encode(thought))


def test_failure_closes_every_item(harmony: Harmony) -> None:
    """The engine fails during a call: every open item is closed, and the response has failed."""
    tools = ToolSet(parse_tools([{"type": "function", "name": "f"}], Limits()))
    writer = ResponseWriter({"id": "resp_1", "status": "in_progress", "output": []}, tools, harmony)
    turn_events: list[TurnEvent] = [ReasoningDelta("Hm"), MessageEnd("analysis"), ToolCallDelta("f", "{")]
    events = [*writer.start(), *(written for event in turn_events for written in writer.write(event))]
    events += writer.fail(HttpProblem(500, "gone", "server_error", None, "engine_error"))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[-3:]] == ["response.output_item.done", "error", "response.failed"]
    assert [item["status"] for item in writer.response["output"]] == ["completed", "incomplete"]
    assert writer.response["status"] == "failed"


def test_cancelled_response(harmony: Harmony) -> None:
    writer = ResponseWriter({"id": "resp_1", "status": "in_progress", "output": []}, ToolSet(), harmony)
    result = GenerationResult(FinishReason.CANCELLED, None, Usage(3, 1), Timings(0, 0, 0, 0, 0))
    events = [
        *writer.start(),
        *writer.write(TextDelta("Hi")),
        *writer.finish(ChoiceEnd("cancelled", result, 0), 3, 0.0),
    ]
    assert events[-1]["type"] == "response.incomplete"
    assert writer.response["status"] == "cancelled"
    assert writer.response["output"][0]["content"][0]["text"] == "Hi"
