"""The chat template, compared with our rendering, which equals openai-harmony's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.nano import render, skills

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")


def as_openai(messages: tuple[render.Message, ...]) -> list[dict[str, Any]]:
    """Messages as the OpenAI API has them: reasoning and calls in one assistant message."""
    out: list[dict[str, Any]] = []
    reasoning: dict[str, Any] = {}
    for message in messages:
        if message.channel == "analysis":
            reasoning = {"reasoning_content": message.text}
            continue
        if message.role.startswith("functions."):
            out.append({"role": "tool", "content": message.text})
        elif message.call:
            function = {"name": message.call, "arguments": message.text}
            out.append({"role": "assistant", "tool_calls": [{"type": "function", "function": function}], **reasoning})
        else:
            out.append({"role": message.role, "content": message.text, **reasoning})
        reasoning = {}
    return out


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(checkpoint)


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_prompts_of_every_skill(tokenizer: Any, skill: str) -> None:
    for sample in skills.held_out(skill, 30):
        setting = sample.setting
        messages = as_openai(sample.messages)
        if setting.instructions:
            messages.insert(0, {"role": "system", "content": setting.instructions})
        tools = [
            {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.schema()}}
            for t in setting.tools
        ]
        ids = tokenizer.apply_chat_template(
            messages,
            tools=tools or None,
            add_generation_prompt=True,
            reasoning_effort=setting.effort,
            return_dict=False,
        )
        dated = f"Current date: {setting.date}\n" if setting.date else ""
        text = re.sub(r"Current date: \S+\n", dated, tokenizer.decode(ids), count=1)
        assert text == tokenizer.decode(sample.prompt_ids)


def test_specials_and_ids_are_those_of_our_tokenizer(tokenizer: Any) -> None:
    assert len(tokenizer) == 201_088
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (199998, 200002, 199999)
    assert tokenizer("<|start|>user<|message|>Don't say 1234.").input_ids[0] == render.START
