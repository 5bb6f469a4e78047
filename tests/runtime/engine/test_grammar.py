"""Grammars: the token masks they give, and the errors for bad ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from gptoss_runtime import BackendUnavailable, FinishReason, GenerationOptions, InvalidRequest
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.engine import grammar as grammar_module
from gptoss_runtime.engine.scripted import ScriptedEngine
from gptoss_runtime.harmony_tokens import CALL, END, ENDOFTEXT, FIRST_SPECIAL, RETURN, SPECIAL_TOKENS, VOCAB_SIZE
from tests.harmony_tools import compile_constraint

LAST_NAMED = max(SPECIAL_TOKENS.values())  # special tokens above it are reserved


@pytest.fixture(scope="module")
def tokenizer(nano_artifact: Path) -> Path:
    return nano_artifact / "tokenizer.json"


def texts(harmony: Harmony, allowed: np.ndarray) -> set[str]:
    return {harmony.decode([int(token)]) for token in np.flatnonzero(allowed)}


def test_the_mask_follows_the_text(tokenizer: Path, harmony: Harmony) -> None:
    rule = compile_constraint(tokenizer, 'start: "yes" | "no" | <|channel|>')
    assert texts(harmony, rule.token_mask()) == {"y", "ye", "yes", "n", "no", "<|channel|>"}
    rule.accept(harmony.encode("ye")[0])
    assert texts(harmony, rule.token_mask()) == {"s"}
    rule.accept(harmony.encode("s")[0])
    assert np.flatnonzero(rule.token_mask()).tolist() == [RETURN]
    assert not rule.complete


def test_stop_tokens_are_allowed_where_the_grammar_may_end(tokenizer: Path) -> None:
    rule = compile_constraint(tokenizer, "start: /a+/", stops=(RETURN, CALL, 10**6))
    assert not rule.token_mask()[RETURN]
    rule.accept(int(np.flatnonzero(rule.token_mask())[0]))
    assert rule.token_mask()[[RETURN, CALL]].all()
    assert not rule.token_mask()[ENDOFTEXT]
    assert rule.token_mask().sum() > 2


def test_ids_without_a_token_are_never_allowed(tokenizer: Path, tmp_path: Path) -> None:
    content = json.loads(tokenizer.read_text("utf-8"))
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["id"] <= LAST_NAMED]
    smaller = tmp_path / "tokenizer.json"  # like the 20b's, whose embedding has more rows than its tokenizer has tokens
    smaller.write_text(json.dumps(content), "utf-8")
    allowed = compile_constraint(smaller, "start: <[*]>+").token_mask()
    assert allowed.shape == (VOCAB_SIZE,)
    assert allowed[:FIRST_SPECIAL].all()
    assert not allowed[LAST_NAMED + 1 :].any()


def test_text_that_looks_like_a_special_token_is_text(tokenizer: Path, harmony: Harmony) -> None:
    for grammar in ('start: "<|end|>"', "start: /<\\|end\\|>/", 'start: %json {"const": "<|end|>"}'):
        rule = compile_constraint(tokenizer, grammar)
        for token in harmony.encode("<|end|>" if "json" not in grammar else '"<|end|>"'):
            assert not rule.token_mask()[END]
            assert rule.token_mask()[token]
            rule.accept(token)
        assert rule.token_mask()[RETURN]


def test_the_vocabulary_matches_the_tokenizer(tokenizer: Path) -> None:
    """Compares with llguidance's own reader of tokenizer.json, which takes a second longer."""
    tokens, eos = grammar_module._load_tokenizer(tokenizer)
    whole = grammar_module._import_llguidance().LLTokenizer(tokenizer.read_text("utf-8"), eos_token=eos)
    assert tokens.vocab_size == whole.vocab_size
    for token in (*range(0, whole.vocab_size, 7), *range(FIRST_SPECIAL - 8, whole.vocab_size)):
        assert tokens.decode_bytes([token]) == whole.decode_bytes([token])
        assert tokens.is_special_token(token) == whole.is_special_token(token)


def test_the_tokenizer_is_read_once(tokenizer: Path) -> None:
    compile_constraint(tokenizer, 'start: "a"')
    before = grammar_module._read_tokenizer.cache_info()
    compile_constraint(tokenizer, 'start: "b"')
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
def test_a_bad_grammar_is_rejected_before_generation_starts(tokenizer: Path, grammar: str) -> None:
    engine = ScriptedEngine([[7]], tokenizer=tokenizer)
    with pytest.raises(InvalidRequest) as caught:
        engine.generate([1], GenerationOptions(grammar=grammar))
    assert caught.value.remedy
    assert len(caught.value.message) < 1000
    assert engine.prompts == []
    assert list(engine.generate([1], GenerationOptions(temperature=0))) == [7, RETURN]


def test_generated_text_matches_the_grammar(tokenizer: Path, harmony: Harmony) -> None:
    preferred = harmony.encode("no way")
    engine = ScriptedEngine([preferred] * 3, tokenizer=tokenizer)
    generation = engine.generate([1], GenerationOptions(grammar='start: "yes" | "no"', temperature=0))
    assert harmony.decode(generation) == "no<|return|>"
    assert generation.result.stop_token == RETURN
    # without stop tokens, the generation ends where the grammar does
    options = GenerationOptions(grammar='start: "yes" | "no"', temperature=0, stop_token_ids=())
    generation = engine.generate([1], options)
    assert harmony.decode(generation) == "no"
    assert (generation.result.finish_reason, generation.result.stop_token) == (FinishReason.STOP, None)


def test_a_grammar_that_exceeds_a_cost_limit_ends_the_generation(tokenizer: Path, harmony: Harmony) -> None:
    many = range(21_000)
    rules = [f'r{at}: "b" s{at % 7}' for at in many] + [f's{at}: "c" "d"' for at in range(7)]
    grammar = "\n".join(['start: "a" (' + " | ".join(f"r{at}" for at in many) + ")", *rules])
    engine = ScriptedEngine([harmony.encode("a"), [7]], tokenizer=tokenizer)
    generation = engine.generate([1], GenerationOptions(grammar=grammar, temperature=0))
    with pytest.raises(InvalidRequest, match="row"):
        list(generation)
    assert list(engine.generate([1], GenerationOptions(temperature=0))) == [7, RETURN]


def test_an_engine_without_a_tokenizer_rejects_grammars() -> None:
    with pytest.raises(InvalidRequest, match="no tokenizer"):
        ScriptedEngine([]).generate([1], GenerationOptions(grammar='start: "a"'))


def test_without_llguidance_the_remedy_says_how_to_install_it(tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BackendUnavailable) as caught:
        compile_constraint(tokenizer, 'start: "a"')
    assert "pip install" in str(caught.value.remedy)
