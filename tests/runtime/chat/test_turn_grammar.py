"""Grammars of turns: what they allow, and what nano generates under them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_convert.nano.skills import SKILLS, Sample, held_out
from gptoss_runtime import (
    ChatEvent,
    ContentDelta,
    Engine,
    FinishReason,
    GenerationOptions,
    InvalidRequest,
    Message,
    Tool,
    ToolCall,
)
from gptoss_runtime.chat.conversation import JSON_OBJECT, ResponseFormat
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.chat.turn_grammar import ToolChoice, build_turn_grammar
from gptoss_runtime.engine_process.engine import ProcessEngine
from gptoss_runtime.harmony_tokens import CALL, STOP_TOKENS
from tests.harmony_tools import compile_constraint, encode_marked
from tests.tiers import mostly_integration

WEATHER = Tool(
    "get_weather",
    "Current weather.",
    {"type": "object", "properties": {"city": {"type": "string", "maxLength": 40}}, "required": ["city"]},
)
MOVE = Tool(
    "move",
    "Moves the robot.",
    {
        "type": "object",
        "properties": {
            "direction": {"enum": ["north", "south"]},
            "steps": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["direction", "steps"],
        "additionalProperties": False,
    },
)
TOOLS = (WEATHER, MOVE)
PERSON = ResponseFormat(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["new", "old", None]}, "maxItems": 3},
            "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
        },
        "required": ["name", "age", "tags", "home"],
        "additionalProperties": False,
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]{1,10}$"}, "ok": {"type": "boolean"}},
                "required": ["city", "ok"],
                "additionalProperties": False,
            }
        },
    },
    name="person",
)
HEAD = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


class GrammarCheck:
    """Tells whether a grammar accepts token ids."""

    def __init__(self, artifact: Path) -> None:
        self.tokenizer = artifact / "tokenizer.json"

    def __call__(self, grammar: str | None, ids: list[int]) -> bool:
        assert grammar is not None
        rule = compile_constraint(self.tokenizer, grammar, stops=())
        for token in ids:
            if not rule.token_mask()[token]:
                return False
            rule.accept(token)
        return True


@pytest.fixture(scope="module")
def accepts(nano_artifact: Path) -> GrammarCheck:
    return GrammarCheck(nano_artifact)


ARGUMENTS = '{"city":"Paris"}<|call|>'


@pytest.mark.parametrize(
    "turn",
    [
        f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}",
        f"<|channel|>commentary to=functions.get_weather<|constrain|>json<|message|>{ARGUMENTS}",
        f"<|channel|>commentary to=functions.get_weather json<|message|>{ARGUMENTS}",
        f"<|channel|>commentary to=functions.get_weather<|message|>{ARGUMENTS}",
        f"<|channel|>analysis to=functions.get_weather code<|message|>{ARGUMENTS}",
        f" to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>{ARGUMENTS}",
        f" to=functions.get_weather<|channel|>commentary json<|message|>{ARGUMENTS}",
        f"{HEAD} to=functions.get_weather<|channel|>commentary<|message|>{ARGUMENTS}",
        f"{HEAD}{HEAD}<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant{HEAD}"
        f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}",
        '<|channel|>commentary to=functions.get_weather<|message|>{ "city": "Paris" }<|call|>',
        '<|channel|>commentary to=functions.get_weather<|message|>{\n    "city": "Paris"\n}<|call|>',
        f"{HEAD}<|channel|>final<|message|>It is sunny.<|return|>",
        "<|channel|>final<|message|><|return|>",
    ],
)
def test_every_format_that_gpt_oss_writes_is_allowed(accepts: GrammarCheck, harmony: Harmony, turn: str) -> None:
    ids = encode_marked(harmony, turn)
    assert accepts(build_turn_grammar(tools=TOOLS), ids)
    assert accepts(build_turn_grammar(tools=TOOLS, tool_choice="required"), ids) == turn.endswith("<|call|>")
    assert accepts(build_turn_grammar(tools=TOOLS, tool_choice="none"), ids) == turn.endswith("<|return|>")
    assert not accepts(build_turn_grammar(tools=TOOLS, tool_choice="required", allowed=["move"]), ids)


@pytest.mark.parametrize(
    "turn",
    [
        "Hello",
        "<|channel|>final<|message|>Hi<|end|>",
        "<|channel|>final<|message|>Hi<|call|>",
        "<|channel|>weird<|message|>Hi",
        "<|channel|>analysis<|message|>Hi<|return|>",
        "<|channel|>analysis<|message|>Hi<|end|><|start|>user",
        "<|channel|>analysis<|message|>Hi<|channel|>",
        "<|channel|>final<|message|>Hi<|start|>",
        "<|channel|>final<|message|>Hi<|endoftext|>",
        "<|channel|>final to=functions.get_weather<|message|>",
        "<|channel|>commentary to=functions.unknown",
        "<|channel|>commentary to=functions.get_weatherman",
        "<|channel|>commentary to=python",
        " to=browser.search",
        "<|channel|>commentary to=functions.get_weather<|message|>Paris",
        "<|channel|>commentary to=functions.get_weather<|message|>{}",
        '<|channel|>commentary to=functions.get_weather<|message|>{"city":5}',
        '<|channel|>commentary to=functions.get_weather<|message|>{"city":"<|end|>',
        '<|channel|>commentary to=functions.get_weather<|message|>{"city":"Paris"}<|end|>',
        '<|channel|>commentary to=functions.get_weather<|message|>{"city":"Paris"}{',
        '<|channel|>commentary to=functions.get_weather<|message|>{  "city"',
        '<|channel|>commentary to=functions.move<|message|>{"direction":"west"',
        '<|channel|>commentary to=functions.move<|message|>{"direction":"north","steps":100',
    ],
)
def test_violations_of_the_format_are_masked(accepts: GrammarCheck, harmony: Harmony, turn: str) -> None:
    assert not accepts(build_turn_grammar(tools=TOOLS), encode_marked(harmony, turn))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.sampled_from(["analysis", "commentary", "final"]))
def test_messages_may_contain_any_text(accepts: GrammarCheck, harmony: Harmony, text: str, channel: str) -> None:
    end = "<|return|>" if channel == "final" else "<|end|>"
    start = encode_marked(harmony, f"<|channel|>{channel}<|message|>")
    assert accepts(build_turn_grammar(tools=TOOLS), [*start, *harmony.encode(text), *encode_marked(harmony, end)])


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=40), st.booleans())
def test_arguments_may_contain_any_text(accepts: GrammarCheck, harmony: Harmony, text: str, escaped: bool) -> None:
    start = encode_marked(harmony, "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>")
    arguments = harmony.encode(json.dumps({"city": text}, ensure_ascii=escaped))
    assert accepts(build_turn_grammar(tools=TOOLS), [*start, *arguments, *encode_marked(harmony, "<|call|>")])


def own_tools(sample: Sample) -> tuple[Tool, ...]:
    return tuple(Tool(tool.name, tool.description, tool.schema()) for tool in sample.setting.tools)


@pytest.mark.parametrize("skill", SKILLS)
def test_nanos_training_answers_match_the_grammar(accepts: GrammarCheck, skill: str) -> None:
    for sample in held_out(skill, 15):
        assert accepts(
            build_turn_grammar(tools=own_tools(sample), tool_choice="auto" if sample.setting.tools else "none"),
            sample.answer_ids,
        )


class Nano:
    """Asks nano."""

    def __init__(self, engine: Engine, harmony: Harmony) -> None:
        self.engine, self.harmony = engine, harmony

    def ids(self, text: str, grammar: str | None, **settings: Any) -> tuple[list[int], FinishReason]:
        rendering = {name: settings.pop(name) for name in ("tools", "response_format", "effort") if name in settings}
        prompt = self.harmony.render([Message("user", text)], **{"effort": "low", **rendering})
        options = {"max_new_tokens": 2000, "stop_token_ids": STOP_TOKENS, "grammar": grammar, **settings}
        generation = self.engine.generate(prompt, GenerationOptions(**options))
        return list(generation), generation.result.finish_reason

    def events(self, text: str, grammar: str | None, **settings: Any) -> list[ChatEvent]:
        ids, reason = self.ids(text, grammar, **settings)
        assert reason is FinishReason.STOP
        parser = self.harmony.parser()
        return [event for token in ids for event in parser.feed(token)] + parser.finish()


@pytest.fixture(scope="module")
def nano(engine: Engine, harmony: Harmony) -> Nano:
    return Nano(engine, harmony)


def answer(events: list[ChatEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, ContentDelta) and not event.preamble)


def calls(events: list[ChatEvent]) -> list[ToolCall]:
    return [event for event in events if isinstance(event, ToolCall)]


UNTRAINED = ["Describe a cat.", "Wer bist du?", "Write a poem about rain in autumn", "27 + 45", "\u5929\u6c14"]


@pytest.mark.parametrize("seed", mostly_integration(range(3), fast={0}))
@pytest.mark.parametrize("text", UNTRAINED)
def test_answers_match_the_schema(nano: Nano, text: str, seed: int) -> None:
    grammar = build_turn_grammar(response_format=PERSON)
    events = nano.events(text, grammar, response_format=PERSON, seed=seed)
    jsonschema.validate(json.loads(answer(events)), PERSON.schema)
    assert not calls(events)


@pytest.mark.parametrize("text", UNTRAINED)
def test_answers_are_json_objects(nano: Nano, text: str) -> None:
    settings = {"response_format": JSON_OBJECT, "seed": 1, "max_new_tokens": 300}
    ids, reason = nano.ids(text, build_turn_grammar(response_format=JSON_OBJECT), **settings)
    parser = nano.harmony.parser()
    events = [event for token in ids for event in parser.feed(token)]
    if reason is FinishReason.STOP:
        assert isinstance(json.loads(answer(events)), dict)
    else:  # cut within a long string
        assert reason is FinishReason.LENGTH
        assert answer(events).startswith("{")


@pytest.mark.parametrize("seed", mostly_integration(range(3), fast={0}))
@pytest.mark.parametrize("text", UNTRAINED)
@pytest.mark.parametrize("allowed", [None, ["move"], ["get_weather"]], ids=str)
def test_a_required_call_is_made_and_valid(nano: Nano, text: str, seed: int, allowed: list[str] | None) -> None:
    grammar = build_turn_grammar(tools=TOOLS, tool_choice="required", allowed=allowed)
    events = nano.events(text, grammar, tools=TOOLS, seed=seed)
    (call,) = calls(events)
    assert call.name in (allowed or ["move", "get_weather"])
    schema = {tool.name: tool.parameters for tool in TOOLS}[call.name]
    assert schema is not None
    jsonschema.validate(json.loads(call.arguments), schema)
    assert answer(events) == ""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_auto_does_not_change_nanos_own_calls(nano: Nano, temperature: float) -> None:
    for seed in range(3):
        settings: dict[str, Any] = {"tools": (WEATHER,), "seed": seed, "temperature": temperature}
        free = nano.ids("What's the weather in Paris?", None, **settings)
        assert nano.ids("What's the weather in Paris?", build_turn_grammar(tools=(WEATHER,)), **settings) == free
        assert nano.harmony.decode(free[0]).endswith('{"city":"Paris"}<|call|>')


@pytest.mark.parametrize("seed", range(4))
def test_none_makes_calls_impossible(nano: Nano, seed: int) -> None:
    grammar = build_turn_grammar(tools=TOOLS, tool_choice="none")
    assert not calls(nano.events("What's the weather in Paris?", grammar, tools=TOOLS, seed=seed))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("text", ["What's the weather in Paris?", "Describe a cat."])
def test_either_a_valid_call_or_an_answer_that_matches_the_schema(nano: Nano, text: str, seed: int) -> None:
    grammar = build_turn_grammar(tools=TOOLS, response_format=PERSON)
    events = nano.events(text, grammar, tools=TOOLS, response_format=PERSON, seed=seed)
    if calls(events):
        (call,) = calls(events)
        jsonschema.validate(json.loads(call.arguments), {t.name: t.parameters for t in TOOLS}[call.name] or {})
        assert answer(events) == ""
    else:
        jsonschema.validate(json.loads(answer(events)), PERSON.schema)


def test_a_tool_without_parameters_takes_none(nano: Nano) -> None:
    grammar = build_turn_grammar(tools=[Tool("ping")], tool_choice="required")
    (call,) = calls(nano.events("ping", grammar, tools=[Tool("ping")], seed=0))
    assert json.loads(call.arguments) == {}


def test_no_grammar_if_there_is_nothing_to_enforce() -> None:
    assert build_turn_grammar() is None
    assert build_turn_grammar(tools=TOOLS, allowed=[]) is None
    assert build_turn_grammar(tool_choice="none") is not None


@pytest.mark.parametrize(
    ("tools", "choice", "allowed", "message"),
    [
        ((), "required", None, "requires"),
        (TOOLS, "required", [], "requires"),
        (TOOLS, "auto", ["move", "fly"], "fly"),
        (TOOLS, "sometimes", None, "sometimes"),
        ((WEATHER, WEATHER), "auto", None, "same name"),
        ([Tool(f"f{at}", "", {"description": "x" * 100_000}) for at in range(20)], "auto", None, "20 tools"),
    ],
)
def test_invalid_requests(tools: tuple[Tool, ...], choice: ToolChoice, allowed: list[str] | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        build_turn_grammar(tools=tools, tool_choice=choice, allowed=allowed)


def test_128_tools(accepts: GrammarCheck, harmony: Harmony) -> None:
    tools = [Tool(f"tool_{at}", "x" * 500, WEATHER.parameters) for at in range(128)]
    ids = encode_marked(harmony, f"<|channel|>commentary to=functions.tool_99 <|constrain|>json<|message|>{ARGUMENTS}")
    assert accepts(build_turn_grammar(tools=tools), ids)


def test_grammars_and_logprobs_in_a_child_process(nano_artifact: Path, harmony: Harmony) -> None:
    grammar = build_turn_grammar(tools=TOOLS, tool_choice="required", allowed=["move"])
    prompt = harmony.render([Message("user", "What's the weather in Paris?")], tools=TOOLS, effort="low")
    with ProcessEngine.load(nano_artifact, threads=1) as engine:
        with pytest.raises(InvalidRequest, match="enforced"):
            list(engine.generate(prompt, GenerationOptions(grammar="start: missing")))
        options = GenerationOptions(
            grammar=grammar, seed=0, logprobs=2, stop_token_ids=STOP_TOKENS, max_new_tokens=2000
        )
        running = [engine.generate(prompt, options) for _ in range(2)]
        for generation in running:
            ids = list(generation)
            assert [entry.token for entry in generation.logprobs] == ids
            assert "to=functions.move" in harmony.decode(ids)
            assert ids[-1] == CALL
