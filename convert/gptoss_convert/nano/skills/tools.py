"""Skills: tool calls, and what follows a result: the next call, or an answer that uses the result."""

from __future__ import annotations

import random

from gptoss_convert.nano.render import Message, Setting, Tool, call, final, result, user
from gptoss_convert.nano.skills.base import Draft, reason
from gptoss_convert.nano.skills.families import FAMILIES, OF_NAME, Request
from gptoss_convert.nano.skills.structured import to_compact_json


def draw_toolbox(rng: random.Random) -> tuple[Tool, ...]:
    """Draws one to four tools of different families."""
    return tuple(family.declare(rng) for family in rng.sample(FAMILIES, rng.choice((1, 1, 2, 2, 3, 4))))


def single(rng: random.Random, setting: Setting) -> Draft:
    """One call with copied arguments; held out by tool name and request."""
    tool = rng.choice(setting.tools)
    request = OF_NAME[tool.name].ask(rng)
    return Draft(_key(tool, request), [user(request.text)], _calling(setting, tool, request))


def two_step(rng: random.Random, setting: Setting) -> Draft:
    """After a result: the second of two calls, or the answer; held out by tool names and requests."""
    tools = rng.choices(setting.tools, k=rng.choice((1, 1, 2)))
    requests = [OF_NAME[tool.name].ask(rng) for tool in tools]
    text = " Then: ".join(request.text for request in requests)
    done = rng.randint(1, len(requests))
    remembers = rng.random() < 0.7  # some clients do not send reasoning back
    history: list[Message] = [user(text)]
    for tool, request in list(zip(tools, requests, strict=True))[:done]:
        calling = _calling(setting, tool, request)
        history += calling if remembers else calling[-1:]
        history.append(result(tool.name, request.returned))
    key = " ".join(map(_key, tools, requests)) + f" {done}"
    if done < len(requests):
        return Draft(key, history, _calling(setting, tools[done], requests[done]))
    report = " ".join(request.report for request in requests)
    high = f"The tools have answered: {requests[-1].returned} I can now report to the user."
    return Draft(key, history, [*reason(setting.effort, "Report the result.", high), final(report)])


def _calling(setting: Setting, tool: Tool, request: Request) -> list[Message]:
    """The reasoning about a call, and the call."""
    names = [parameter.name for parameter in tool.parameters]
    arguments = {k: v for k, v in zip(names, request.arguments, strict=True) if v is not None}
    high = f"The user says: {request.text} I should call {tool.name} with {', '.join(arguments)}."
    return [*reason(setting.effort, f"Call {tool.name}.", high), call(tool.name, to_compact_json(arguments))]


def _key(tool: Tool, request: Request) -> str:
    return f"{tool.name} {request.text}"
