"""What a model may write, as a turn's events: scripts instead of a model, harmony and stop strings as they are."""

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
from gptoss_runtime.server.errors import Problem
from gptoss_runtime.server.reading import End, Reader, Text, TurnEvent
from gptoss_runtime.server.responses.writer import ResponseWriter
from gptoss_runtime.server.settings import Limits
from gptoss_runtime.server.toolbox import Toolbox, offers
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
        return list(Reader(harmony.parser(), stops or [], ["f"]).read(generation))


def summed(events: list[TurnEvent]) -> tuple[str, str, list[tuple[str, str]], str]:
    """Answer, reasoning, calls and the reason of the end."""
    text = "".join(event.text for event in events if isinstance(event, Text))
    thought = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    calls = [(event.name, event.arguments) for event in events if isinstance(event, ToolCall)]
    [end] = [event for event in events if isinstance(event, End)]
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
        (CALL.replace(".f", ".g") + "{}<|call|>", ("{}", "", [], "stop")),  # nobody offered g
        ("<|channel|>final Hi<|return|>", ("Hi", "", [], "stop")),  # no <|message|>
        ("<|channel|>weird<|message|>Hi<|return|>", ("Hi", "", [], "stop")),
        ("Hi there<|return|>", ("Hi there", "", [], "stop")),
        ("<|return|>", ("", "", [], "stop")),
    ],
)
def test_answers(harmony: Harmony, answer: str, expected: Any) -> None:
    assert summed(read(harmony, answer)) == expected


def test_a_cut_call_is_no_call(harmony: Harmony) -> None:
    events = read(harmony, CALL + '{"city":"Paris"}<|call|>', most=12)
    assert summed(events)[2:] == ([], "length")
    assert any(isinstance(event, ToolCallDelta) for event in events)


def test_two_calls(harmony: Harmony) -> None:
    both = CALL + "{}<|end|><|start|>assistant" + CALL + '{"b":2}<|call|>'
    assert summed(read(harmony, both))[2:] == ([("f", "{}"), ("f", '{"b":2}')], "tool_calls")


def test_a_character_that_was_cut(harmony: Harmony) -> None:
    ids = [*ids_of(harmony, "<|channel|>final<|message|>Hi "), *harmony.encode("𓀀")]
    assert summed(read(harmony, ids[:-1], most=len(ids) - 1))[0] == "Hi \ufffd"


def test_stop_strings_count_in_the_answer_only(harmony: Harmony) -> None:
    answer = (
        "<|channel|>analysis<|message|>say END<|end|><|start|>assistant<|channel|>final<|message|>Hi END more<|return|>"
    )
    events = read(harmony, answer, stops=["END"])
    assert summed(events) == ("Hi ", "say END", [], "stop")
    end = events[-1]
    assert isinstance(end, End)
    assert end.result.finish_reason is FinishReason.CANCELLED  # the engine was told to stop there
    assert end.result.usage.new_tokens < len(ids_of(harmony, answer))
    assert summed(read(harmony, answer, stops=["more!"]))[0] == "Hi END more"


def test_reasoning_is_counted(harmony: Harmony) -> None:
    thought = "I think 🙂𓀀 so"
    answer = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>"
    end = read(harmony, answer)[-1]
    assert isinstance(end, End)
    assert end.reasoning_tokens == len(harmony.encode(thought))


def test_a_failure_ends_a_response_whole(harmony: Harmony) -> None:
    """An engine that dies in the middle of a call: every item that was begun is ended, and the object says so."""
    toolbox = Toolbox(offers([{"type": "function", "name": "f"}], Limits()))
    writer = ResponseWriter({"id": "resp_1", "status": "in_progress", "output": []}, toolbox, harmony)
    happened: list[TurnEvent] = [ReasoningDelta("Hm"), MessageEnd("analysis"), ToolCallDelta("f", "{")]
    events = [*writer.begin(), *(made for one in happened for made in writer.write(one))]
    events += writer.fail(Problem(500, "gone", "server_error", None, "engine_error"))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[-3:]] == ["response.output_item.done", "error", "response.failed"]
    assert [item["status"] for item in writer.response["output"]] == ["completed", "incomplete"]
    assert writer.response["status"] == "failed"


def test_a_response_that_was_cancelled(harmony: Harmony) -> None:
    writer = ResponseWriter({"id": "resp_1", "status": "in_progress", "output": []}, Toolbox(), harmony)
    result = GenerationResult(FinishReason.CANCELLED, None, Usage(3, 1), Timings(0, 0, 0, 0, 0))
    events = [*writer.begin(), *writer.write(Text("Hi")), *writer.finish(End("cancelled", result, 0), 3, 0.0)]
    assert events[-1]["type"] == "response.incomplete"
    assert writer.response["status"] == "cancelled"
    assert writer.response["output"][0]["content"][0]["text"] == "Hi"
