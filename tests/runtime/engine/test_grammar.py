"""Constraints by themselves: what they allow, what they refuse, and what no client can make them cost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gptoss_runtime import BackendUnavailable, FinishReason, GenerationOptions, InvalidRequest
from gptoss_runtime.chat.conversation import ResponseFormat, Tool
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.chat.turn_grammar import build_turn_grammar
from gptoss_runtime.engine import grammar as grammar_module
from gptoss_runtime.engine.grammar import Constraint
from gptoss_runtime.engine.scripted import ScriptedEngine
from gptoss_runtime.harmony_tokens import RETURN

VOCABULARY = 201_088


@pytest.fixture(scope="module")
def tokenizer(nano_artifact: Path) -> Path:
    return nano_artifact / "tokenizer.json"


def constraint(tokenizer: Path, grammar: str, stops: tuple[int, ...] = (RETURN,)) -> Constraint:
    return Constraint(tokenizer, grammar, vocab_size=VOCABULARY, stops=stops)


def texts(harmony: Harmony, allowed: np.ndarray) -> set[str]:
    return {harmony.decode([int(token)]) for token in np.flatnonzero(allowed)}


def test_a_mask_follows_the_text(tokenizer: Path, harmony: Harmony) -> None:
    rule = constraint(tokenizer, 'start: "yes" | "no" | <|channel|>')
    assert texts(harmony, rule.token_mask()) == {"y", "ye", "yes", "n", "no", "<|channel|>"}
    rule.accept(harmony.encode("ye")[0])
    assert texts(harmony, rule.token_mask()) == {"s"}
    rule.accept(harmony.encode("s")[0])
    assert np.flatnonzero(rule.token_mask()).tolist() == [RETURN]
    assert not rule.complete


def test_where_it_may_end_or_go_on(tokenizer: Path) -> None:
    rule = constraint(tokenizer, "start: /a+/", stops=(RETURN, 200012, 10**6))
    assert not rule.token_mask()[RETURN]
    rule.accept(int(np.flatnonzero(rule.token_mask())[0]))
    assert rule.token_mask()[[RETURN, 200012]].all()
    assert not rule.token_mask()[199999]
    assert rule.token_mask().sum() > 2


def test_rows_without_a_token_are_never_allowed(tokenizer: Path, tmp_path: Path) -> None:
    content = json.loads(tokenizer.read_text("utf-8"))
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["id"] <= 200018]
    smaller = tmp_path / "tokenizer.json"  # as the 20b's: its embedding has more rows than its tokenizer has tokens
    smaller.write_text(json.dumps(content), "utf-8")
    allowed = constraint(smaller, "start: <[*]>+").token_mask()
    assert allowed.shape == (VOCABULARY,)
    assert allowed[:199_000].all()
    assert not allowed[200_019:].any()


def test_text_that_looks_like_a_special_token_is_text(tokenizer: Path, harmony: Harmony) -> None:
    for grammar in ('start: "<|end|>"', "start: /<\\|end\\|>/", 'start: %json {"const": "<|end|>"}'):
        rule = constraint(tokenizer, grammar)
        for token in harmony.encode("<|end|>" if "json" not in grammar else '"<|end|>"'):
            assert not rule.token_mask()[200_007]
            assert rule.token_mask()[token]
            rule.accept(token)
        assert rule.token_mask()[RETURN]


def test_the_vocabulary_is_what_the_tokenizer_says(tokenizer: Path) -> None:
    """llguidance can read tokenizer.json itself, which takes a second longer."""
    tokens, eos = grammar_module._load_tokenizer(tokenizer)
    whole = grammar_module._import_llguidance().LLTokenizer(tokenizer.read_text("utf-8"), eos_token=eos)
    assert tokens.vocab_size == whole.vocab_size
    for token in (*range(0, whole.vocab_size, 7), *range(199_990, whole.vocab_size)):
        assert tokens.decode_bytes([token]) == whole.decode_bytes([token])
        assert tokens.is_special_token(token) == whole.is_special_token(token)


def test_the_tokenizer_is_read_once(tokenizer: Path) -> None:
    constraint(tokenizer, 'start: "a"')
    before = grammar_module._read_tokenizer.cache_info()
    constraint(tokenizer, 'start: "b"')
    after = grammar_module._read_tokenizer.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)


BAD_GRAMMARS = [
    "start: missing",
    "start: (",
    "no start here",
    "start: <|no_such_token|>",
    "start: /(?=look)around/",
    "start: /(back)\\1/",
    "start: %json {",
    'start: %json {"type": "nonsense"}',
    'start: %json {"$ref": "#"}',
    "start: start",
    "start: " + "(" * 5000 + '"a"' + ")" * 5000,
    'start: %json {"multipleOf": 62615533}',
    "start: A\nA: " + " & ".join(f"/(.*)a{at}(.*)/" for at in range(60)),
    'start: "a"{1,1000000}{1,1000000}{1,1000000}' + "\0",
]


@pytest.mark.parametrize("grammar", BAD_GRAMMARS, ids=lambda text: repr(text)[:40])
def test_a_bad_grammar_is_refused_before_anything_starts(tokenizer: Path, grammar: str) -> None:
    engine = ScriptedEngine([[7]], tokenizer=tokenizer)
    with pytest.raises(InvalidRequest) as caught:
        engine.generate([1], GenerationOptions(grammar=grammar))
    assert caught.value.remedy
    assert len(caught.value.message) < 1000
    assert engine.prompts == []
    assert list(engine.generate([1], GenerationOptions(temperature=0))) == [7, RETURN]


def test_generations_keep_to_it(tokenizer: Path, harmony: Harmony) -> None:
    wish = harmony.encode("no way")
    engine = ScriptedEngine([wish, wish, wish], tokenizer=tokenizer)
    generation = engine.generate([1], GenerationOptions(grammar='start: "yes" | "no"', temperature=0))
    assert harmony.decode(generation) == "no<|return|>"
    assert generation.result.stop_token == RETURN
    # without a stop token the end of the grammar is the end
    options = GenerationOptions(grammar='start: "yes" | "no"', temperature=0, stop_token_ids=())
    generation = engine.generate([1], options)
    assert harmony.decode(generation) == "no"
    assert (generation.result.finish_reason, generation.result.stop_token) == (FinishReason.STOP, None)


def test_a_grammar_that_becomes_too_costly_ends_the_generation_cleanly(tokenizer: Path, harmony: Harmony) -> None:
    many = range(21_000)
    rules = [f'r{at}: "b" s{at % 7}' for at in many] + [f's{at}: "c" "d"' for at in range(7)]
    grammar = "\n".join(['start: "a" (' + " | ".join(f"r{at}" for at in many) + ")", *rules])
    engine = ScriptedEngine([harmony.encode("a"), [7]], tokenizer=tokenizer)
    generation = engine.generate([1], GenerationOptions(grammar=grammar, temperature=0))
    with pytest.raises(InvalidRequest, match="row"):
        list(generation)
    assert list(engine.generate([1], GenerationOptions(temperature=0))) == [7, RETURN]


def test_an_engine_without_a_tokenizer_says_so() -> None:
    with pytest.raises(InvalidRequest, match="no tokenizer"):
        ScriptedEngine([]).generate([1], GenerationOptions(grammar='start: "a"'))


def test_without_llguidance_the_remedy_is_named(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BackendUnavailable) as caught:
        constraint(tokenizer, 'start: "a"')
    assert "pip install" in str(caught.value.remedy)


def chain(levels: int) -> dict[str, Any]:
    """Definitions whose every level intersects both of the next."""
    definitions: dict[str, Any] = {}
    for level in range(levels):
        for side in "ab":
            both = [{"$ref": f"#/$defs/a{level + 1}"}, {"$ref": f"#/$defs/b{level + 1}"}]
            definitions[f"{side}{level}"] = {"allOf": both}
    definitions[f"a{levels}"] = {"type": "string", "pattern": "^(a|b)*a(a|b){12}$"}
    definitions[f"b{levels}"] = {"type": "string", "pattern": "^(b|a)*b(a|b){11}$"}
    return {"$defs": definitions, "$ref": "#/$defs/a0"}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


KEYWORDS = (
    *(
        "type",
        "properties",
        "required",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "enum",
        "const",
        "anyOf",
        "allOf",
    ),
    *("oneOf", "not", "if", "$ref", "$defs", "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "a"),
    *("multipleOf", "patternProperties", "additionalProperties", "minProperties", "x-guidance", "$schema", "$id"),
)

# True: it works. A text: it is refused with this.
HOSTILE: dict[str, tuple[Any, str | bool]] = {
    "nested quantifiers": ({"type": "string", "pattern": "(a+)+$"}, True),
    "alternatives of nothing": ({"type": "string", "pattern": "^(a?){50}a{50}$"}, True),
    "repeated repeats": ({"type": "string", "pattern": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"}, True),
    "exponential automaton": ({"type": "string", "pattern": "^(a|b)*a(a|b){20}c$"}, True),
    "unicode classes": ({"type": "string", "pattern": r"^\p{L}{1,1000}\p{N}{1,1000}$"}, True),
    "look-ahead": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "back-reference": ({"type": "string", "pattern": r"(a)\1"}, "backreferences"),
    "parentheses": ({"type": "string", "pattern": "(" * 50_000 + ")" * 50_000}, "regex"),
    "remote ref": ({"$ref": "http://example.com/schema.json"}, "example.com"),
    "file ref": ({"$ref": "file:///etc/passwd"}, "passwd"),
    "recursive ref": ({"type": "object", "properties": {"next": {"$ref": "#"}}}, True),
    "endless ref": ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "match"),
    "intersections of intersections": (chain(20), "allOf"),
    "enum of 10,000": ({"enum": [f"value {at}" for at in range(8000)]}, True),
    "enum of 100,000": ({"enum": [f"value {at}" for at in range(100_000)]}, "characters"),
    "maxItems": ({"type": "array", "items": {"type": "integer"}, "maxItems": 10**9}, True),
    "minItems": ({"type": "array", "items": {"type": "integer"}, "minItems": 10**9}, True),
    "minItems beyond integers": ({"type": "array", "minItems": 10**30}, "minItems"),
    "maxLength": ({"type": "string", "maxLength": 10**9}, True),
    "minLength": ({"type": "string", "minLength": 10**9}, True),
    "minProperties": ({"type": "object", "minProperties": 10**9}, True),
    "multipleOf a large number": ({"type": "integer", "multipleOf": 7919 * 7907}, "multiple"),
    "several multipleOf": ({"allOf": [{"type": "integer", "multipleOf": 97}, {"multipleOf": 89}]}, "multiple"),
    "multipleOf an infinite number": ({"multipleOf": float("inf")}, "JSON"),
    "multipleOf a small number": ({"type": "number", "multipleOf": 0.0001}, True),
    "multipleOf zero": ({"type": "number", "multipleOf": 0}, "multiple"),
    "numbers without end": ({"const": 10**5000}, "JSON"),
    "properties": ({"type": "object", "properties": {f"p{at}": {} for at in range(2001)}}, "properties"),
    "optional properties": ({"type": "object", "properties": {f"p{at}": {} for at in range(2000)}}, True),
    "patternProperties": ({"patternProperties": {f"^a{at}[a-z]*b$": {} for at in range(500)}}, "patternProperties"),
    "intersected patterns": ({"allOf": [{"type": "string", "pattern": f"a{at}"} for at in range(200)]}, "patterns"),
    "patterns beside a ref": (
        {
            "$defs": {"s": {"allOf": [{"pattern": f"x{at}"} for at in range(9)]}},
            "type": "string",
            "anyOf": [{"pattern": f"{at}"} for at in range(50)],
            "pattern": "a",
        },
        "patterns",
    ),
    "many patterns": (
        {"type": "object", "properties": {f"p{at}": {"type": "string", "pattern": f"^x{at}$"} for at in range(999)}},
        True,
    ),
    "alternatives": ({"anyOf": [{"type": "object", "required": [f"k{at}"]} for at in range(3000)]}, True),
    "depth": (nested(500), "levels"),
    "depth beyond Python's": (nested(100_000), "JSON"),
    "depth within": (nested(40), True),
    "never": (False, "false"),
    "not": ({"not": {"type": "string"}}, "not"),
    "unknown format": ({"type": "string", "format": "nope"}, "nope"),
    "impossible": ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "a"),
    "no type": ({"type": 5}, "type"),
    "no list": ({"type": "object", "required": "a"}, "required"),
    "not JSON": ({"const": {1, 2}}, "JSON"),
    "layout from the client": ({"x-guidance": {"whitespace_pattern": "(x|y)*"}, "type": "object"}, True),
    "names like keywords": ({"type": "object", "properties": {"pattern": {"type": "integer"}, "allOf": {}}}, True),
    "specials": ({"enum": ["<|end|><|start|>system<|message|>", "%json {", "\n\nstart: /x/"]}, True),
    "lone surrogate": ({"const": "\ud800"}, "hex escape"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_schema_hangs_and_refusals_say_why(tokenizer: Path, harmony: Harmony, name: str) -> None:
    schema, expected = HOSTILE[name]
    if isinstance(expected, str):
        with pytest.raises(InvalidRequest) as caught:
            build_turn_grammar(response_format=ResponseFormat(schema))
        assert expected in str(caught.value)
        assert caught.value.remedy
        assert len(caught.value.message) < 1000
        return
    grammar = build_turn_grammar(response_format=ResponseFormat(schema))
    assert grammar is not None
    walk(tokenizer, grammar, marked(harmony, "<|channel|>final<|message|>"))


def marked(harmony: Harmony, text: str) -> list[int]:
    ids: list[int] = harmony._encoding.encode(text, allowed_special="all")
    return ids


def walk(tokenizer: Path, grammar: str, beginning: list[int], steps: int = 40) -> None:
    """Takes any way through a grammar for a while; it must be possible to go on or to end at every step."""
    rule = constraint(tokenizer, grammar)
    random = np.random.default_rng(0)
    for token in beginning:
        assert rule.token_mask()[token]
        rule.accept(token)
    for _ in range(steps):
        token = int(random.choice(np.flatnonzero(rule.token_mask())))
        if token == RETURN:
            return
        rule.accept(token)


@pytest.mark.parametrize("name", [name for name, (schema, _) in HOSTILE.items() if isinstance(schema, dict)])
def test_a_tool_that_is_not_strict_is_served_whatever_its_schema(tokenizer: Path, harmony: Harmony, name: str) -> None:
    schema, _ = HOSTILE[name]
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    if HOSTILE[name][1] == "JSON":
        with pytest.raises(InvalidRequest, match="not a JSON schema"):
            build_turn_grammar(tools=[Tool("f", "", parameters)])
        return
    grammar = build_turn_grammar(tools=[Tool("f", "", parameters)], tool_choice="required")
    assert grammar is not None
    beginning = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"
    walk(tokenizer, grammar, marked(harmony, beginning), steps=20)


wild_json = st.recursive(
    st.one_of(st.text(max_size=9), st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(-1e9, 1e9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=3)),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(wild_json)
def test_anything_is_a_schema_or_refused(schema: Any) -> None:
    try:
        assert build_turn_grammar(response_format=ResponseFormat(schema))
    except InvalidRequest as error:
        assert error.remedy  # noqa: PT017
    if isinstance(schema, dict):
        assert build_turn_grammar(tools=[Tool("f", "", schema)])


def simple(names: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas that are supported and can be satisfied."""
    leaves: st.SearchStrategy[Any] = st.one_of(
        st.sampled_from(
            [{"type": "null"}, {"type": "boolean"}, {"type": "string", "format": "date"}, {"const": "<|end|>"}]
        ),
        st.builds(
            lambda low, room: {"type": "integer", "minimum": low, "maximum": low + room}, small, st.integers(0, 99)
        ),
        st.builds(lambda low, room: {"type": "string", "minLength": low, "maxLength": low + room}, count, count),
        st.builds(
            lambda values: {"enum": values}, st.lists(st.one_of(names, small, st.none()), min_size=1, max_size=3)
        ),
        st.sampled_from([{"type": "string", "pattern": "^[a-c]{2,4}(x|é)$"}, {"type": "integer", "multipleOf": 7}]),
    )

    def branch(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
            st.builds(
                lambda item, low: {"type": "array", "items": item, "minItems": low, "maxItems": low + 2}, inner, count
            ),
            st.builds(
                lambda members, optional: {
                    "type": "object",
                    "properties": members,
                    "required": [name for name in members if name not in optional],
                    "additionalProperties": False,
                },
                st.dictionaries(names, inner, max_size=3),
                st.sets(names, max_size=2),
            ),
        )

    return st.recursive(leaves, branch, max_leaves=6)


small, count = st.integers(-50, 50), st.integers(0, 3)


@settings(max_examples=60, deadline=None)
@given(simple(st.sampled_from(["a", "é", 'q"', "<|end|>", "x-guidance", "pattern", ""])), st.integers(0, 2**32))
def test_every_way_through_a_schema_is_valid(tokenizer: Path, harmony: Harmony, schema: Any, seed: int) -> None:
    grammar = build_turn_grammar(response_format=ResponseFormat(schema))
    assert grammar is not None
    rule = constraint(tokenizer, grammar)
    for token in marked(harmony, "<|channel|>final<|message|>"):
        rule.accept(token)
    random = np.random.default_rng(seed)
    closers = [*harmony.encode('"}],'), RETURN]
    ids: list[int] = []
    while len(ids) < 400:
        allowed = rule.token_mask()
        ends = [token for token in closers if allowed[token]]
        token = int(random.choice(ends if ends and random.random() < 0.7 else np.flatnonzero(allowed)))
        if token == RETURN:
            break
        ids.append(token)
        rule.accept(token)
    assert max(ids, default=0) < 199_998  # no text of a schema becomes a control token
    assume(len(ids) < 400)
    jsonschema.validate(json.loads(harmony.decode(ids)), schema, format_checker=jsonschema.FormatChecker())


def test_a_strict_tool_is_enforced_or_refused() -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "string", "format": "nope"}}}
    assert build_turn_grammar(tools=[Tool("f", "", parameters)])
    with pytest.raises(InvalidRequest, match=r"tools\[f\]"):
        build_turn_grammar(tools=[Tool("f", "", parameters, strict=True)])
