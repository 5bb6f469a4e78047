"""The token ids in ``harmony_tokens`` are openai-harmony's, and no other module writes one down."""

from __future__ import annotations

import re
from pathlib import Path

import gptoss_convert
import gptoss_runtime
from gptoss_runtime import harmony_tokens
from gptoss_runtime.chat.harmony import Harmony

_ID_LITERAL = re.compile(r"\b(?:199_?99[89]|200_?0\d\d|201_?088)\b")


def test_the_ids_are_those_of_openai_harmony(harmony: Harmony) -> None:
    for text, token in harmony_tokens.SPECIAL_TOKENS.items():
        name = "<|reserved_200018|>" if text == "<|endofprompt|>" else text  # openai-harmony gives that id no name
        assert harmony.decode([token]) == name
        assert harmony._encoding.is_special_token(token)
        assert token >= harmony_tokens.FIRST_SPECIAL
    assert not harmony._encoding.is_special_token(harmony_tokens.FIRST_SPECIAL - 1)
    assert {*harmony._encoding.stop_tokens_for_assistant_actions()} <= {*harmony_tokens.STOP_TOKENS}


def test_ids_are_written_in_one_module() -> None:
    packages = [Path(str(package.__file__)).parent for package in (gptoss_runtime, gptoss_convert)]
    sources = [path for package in packages for path in package.rglob("*.py")]
    found = [path.name for path in sources if _ID_LITERAL.search(path.read_text(encoding="utf-8"))]
    assert found == ["harmony_tokens.py"]
