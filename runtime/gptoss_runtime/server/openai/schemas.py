"""Request fields that both OpenAI APIs share: sampling, the model, tools, and text as a string or in parts.

Unknown fields are ignored, since new clients send fields that old servers do not know; a known field with a value that
cannot be served is refused. Knows shapes and ranges; knows nothing of harmony or engines.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gptoss_runtime.chat.conversation import Effort
from gptoss_runtime.engine.options import MAX_SEED, GenerationOptions
from gptoss_runtime.server.errors import BadRequest
from gptoss_runtime.server.openai.tools import ToolSet, parse_tools
from gptoss_runtime.server.settings import Limits

EffortName = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_EFFORTS: dict[str, Effort] = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
_TEXT_KEYS = {  # the key of the text in each type of content part
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
}


class Schema(BaseModel):
    """The base of all request models: "1" is not converted to 1, and unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class SamplingFields(Schema):
    """How to sample: OpenAI's fields, and top_k, min_p and repetition_penalty as other local servers have them."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1: all")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)

    def to_options(self, *, max_new_tokens: int | None, **more: Any) -> GenerationOptions:
        """Converts these fields to the engine's options, with ``more`` of them."""
        named = {name: getattr(self, name) for name in SamplingFields.model_fields}
        given = {name: value for name, value in named.items() if value is not None}
        if "seed" in given:
            given["seed"] &= MAX_SEED
        if given.get("top_k") == -1:
            given["top_k"] = 0
        return GenerationOptions(max_new_tokens=max_new_tokens, **given, **more)


class GenerationRequest(SamplingFields):
    """What both APIs' requests have in common: the model, streaming and tools."""

    model: str | None = Field(
        None, description="A name from GET /v1/models; by default the model the server was started with."
    )
    stream: bool | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    def parse_tool_set(self, limits: Limits) -> ToolSet:
        """Parses the tools and the choice among them.

        Raises:
            BadRequest: a tool or choice that cannot be served.
        """
        return ToolSet(parse_tools(self.tools or (), limits), self.tool_choice)


def to_effort(name: str | None) -> Effort:
    """Maps OpenAI's effort to the nearest of gpt-oss's three; gpt-oss always reasons."""
    if name is None:
        return "medium"
    return _EFFORTS.get(name) or name  # type: ignore[return-value]


def parse_text(content: Any, param: str) -> str:
    """Extracts the text of a message from a string, a list of text parts, or nothing.

    Raises:
        BadRequest: a part that is not text.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest("the content is neither text nor a list of parts", param=param, code="invalid_type")
    return "".join(_parse_part(part, f"{param}[{index}]") for index, part in enumerate(content))


def _parse_part(part: Any, param: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _TEXT_KEYS:
        text = part.get(_TEXT_KEYS[kind])
        if isinstance(text, str):
            return text
        raise BadRequest(f"a part of type {kind} has no text", param=param, code="missing_required_parameter")
    raise BadRequest(
        f"content of type {str(kind)[:40]!r} is not supported",
        param=param,
        code="unsupported_content",
        remedy="gpt-oss reads text: send text parts only.",
    )
