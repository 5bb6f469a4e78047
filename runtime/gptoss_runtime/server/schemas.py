"""What both of OpenAI's APIs share in a request: sampling, the model, tools, and text as a string or in parts.

Unknown fields are ignored, as new clients send what old servers never heard of; a known field with a value that cannot
be served is refused. Knows shapes and ranges; knows nothing of harmony or engines.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gptoss_runtime.chat.conversation import Effort
from gptoss_runtime.engine.options import MAX_SEED, GenerationOptions
from gptoss_runtime.server.errors import RequestRefused
from gptoss_runtime.server.settings import Limits
from gptoss_runtime.server.toolbox import Toolbox, offers

EffortName = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_EFFORTS: dict[str, Effort] = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
_TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
}


class Schema(BaseModel):
    """The base: no coercion of "1" to 1, and unknown fields ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Sampling(Schema):
    """How to choose tokens: OpenAI's fields, and top_k, min_p, repetition_penalty as other local servers have them."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1: all")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)

    def options(self, *, max_new_tokens: int | None, **more: Any) -> GenerationOptions:
        """These fields, and others, as the engine has them."""
        named = {name: getattr(self, name) for name in Sampling.model_fields}
        chosen = {name: value for name, value in named.items() if value is not None}
        if "seed" in chosen:
            chosen["seed"] &= MAX_SEED
        if chosen.get("top_k") == -1:
            chosen["top_k"] = 0
        return GenerationOptions(max_new_tokens=max_new_tokens, **chosen, **more)


class AnswerRequest(Sampling):
    """Who shall answer, how the answer shall come, and with which tools."""

    model: str | None = Field(
        None, description="A name of GET /v1/models; by default the model the server was started with."
    )
    stream: bool | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    def toolbox(self, limits: Limits) -> Toolbox:
        """Its tools."""
        return Toolbox(offers(self.tools or (), limits), self.tool_choice)


def effort_of(name: str | None) -> Effort:
    """gpt-oss's nearest of its three efforts; it has no way not to reason at all."""
    if name is None:
        return "medium"
    return _EFFORTS.get(name) or name  # type: ignore[return-value]


def text_of(content: Any, param: str) -> str:
    """The text of a message: a string, a list of text parts, or nothing.

    Raises:
        RequestRefused: a part that is not text.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestRefused("the content is neither text nor a list of parts", param=param, code="invalid_type")
    return "".join(_part(part, f"{param}[{at}]") for at, part in enumerate(content))


def _part(part: Any, param: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        text = part.get(_TEXT_PARTS[kind])
        if isinstance(text, str):
            return text
        raise RequestRefused(f"a part of type {kind} without its text", param=param, code="missing_required_parameter")
    raise RequestRefused(
        f"content of type {str(kind)[:40]!r} cannot be read",
        param=param,
        code="unsupported_content",
        remedy="gpt-oss reads text: send text parts only.",
    )
