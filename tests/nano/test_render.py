"""Our rendering, compared with openai-harmony's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_convert.nano import render, skills

TEXT = st.text(min_size=1, max_size=30).map(lambda text: text.encode("utf-8", "ignore").decode() or "x")
NAME = st.from_regex(r"[a-z][a-z_]{0,12}", fullmatch=True)
PARAMETER = st.builds(
    render.Parameter,
    name=NAME,
    type=st.sampled_from(["string", "integer", "number", "boolean"]),
    description=st.sampled_from(["", "The city.", "How many?"]),
    required=st.booleans(),
) | st.builds(render.Parameter, name=NAME, enum=st.just(("celsius", "fahrenheit")), required=st.booleans())
TOOL = st.builds(
    render.Tool,
    name=NAME,
    description=st.sampled_from(["Gets the weather.", "Does it."]),
    parameters=st.lists(PARAMETER, max_size=3, unique_by=lambda p: p.name).map(tuple),
)
SETTING = st.builds(
    render.Setting,
    effort=st.sampled_from(["low", "medium", "high"]),
    date=st.sampled_from(["", "2025-06-28"]),
    instructions=st.just("") | TEXT,
    tools=st.lists(TOOL, max_size=3, unique_by=lambda t: t.name).map(tuple),
)
TURNS = st.one_of(
    st.tuples(TEXT).map(lambda t: [render.user(t[0])]),
    st.tuples(TEXT, TEXT).map(lambda t: [render.user(t[0]), render.final(t[1])]),
)


def theirs(harmony: Any, setting: render.Setting, messages: list[render.Message]) -> list[int]:
    h: Any = pytest.importorskip("openai_harmony")
    system = h.SystemContent.new().with_reasoning_effort(h.ReasoningEffort(setting.effort.capitalize()))
    if setting.date:
        system = system.with_conversation_start_date(setting.date)
    out = [h.Message.from_role_and_content(h.Role.SYSTEM, system)]
    if setting.instructions or setting.tools:
        developer = h.DeveloperContent.new()
        if setting.instructions:
            developer = developer.with_instructions(setting.instructions)
        if setting.tools:
            described = [
                h.ToolDescription.new(t.name, t.description, parameters=t.schema() if t.parameters else None)
                for t in setting.tools
            ]
            developer = developer.with_function_tools(described)
        out.append(h.Message.from_role_and_content(h.Role.DEVELOPER, developer))
    for message in messages:
        if message.role.startswith("functions."):
            author = h.Author.new(h.Role.TOOL, message.role)
            one = h.Message.from_author_and_content(author, message.text).with_recipient("assistant")
        else:
            one = h.Message.from_role_and_content(h.Role(message.role), message.text)
        if message.channel:
            one = one.with_channel(message.channel)
        if message.call:
            one = one.with_recipient(f"functions.{message.call}").with_content_type("<|constrain|>json")
        out.append(one)
    conversation = h.Conversation.from_messages(out)
    return list(harmony.render_conversation_for_completion(conversation, h.Role.ASSISTANT))


@given(SETTING, st.lists(TURNS, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_conversations(harmony: Any, setting: render.Setting, turns: list[list[render.Message]]) -> None:
    messages = [message for turn in turns for message in turn] + [render.user("And now?")]
    ours = render.render_prefix(setting) + render.render_history(messages) + render.generation_prompt()
    assert ours == theirs(harmony, setting, messages)


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_prompts_of_every_skill(harmony: Any, skill: str) -> None:
    for sample in skills.held_out(skill, 40):
        assert sample.prompt_ids == theirs(harmony, sample.setting, list(sample.messages))


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_answers_parse_as_harmony(harmony: Any, skill: str) -> None:
    h: Any = pytest.importorskip("openai_harmony")
    for sample in skills.held_out(skill, 40):
        parsed = harmony.parse_messages_from_completion_tokens(sample.answer_ids, h.Role.ASSISTANT)
        assert len(parsed) == len(sample.answer)
        for mine, read in zip(sample.answer, parsed, strict=True):
            assert read.content[0].text == mine.text
            assert read.channel == mine.channel
            assert read.recipient == (f"functions.{mine.call}" if mine.call else None)
            if mine.call:
                assert isinstance(json.loads(read.content[0].text), dict)
