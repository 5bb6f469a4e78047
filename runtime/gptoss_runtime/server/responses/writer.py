"""A turn's events as the Responses API's: every event of its stream, in order, and the object they add up to.

The object is built from the same items that the events carry, so that both always say the same. Knows the API's
shapes; knows nothing of routes or the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptoss_runtime.chat.conversation import MessageEnd, ReasoningDelta, ToolCall, ToolCallDelta
from gptoss_runtime.chat.harmony import Harmony
from gptoss_runtime.server.errors import Problem
from gptoss_runtime.server.reading import End, Text, TurnEvent
from gptoss_runtime.server.responses.items import Item, carried, new_id
from gptoss_runtime.server.toolbox import Toolbox, input_of, new_call_id
from gptoss_runtime.server.usage import logprob_entries, response_usage, timings

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReasoningForms:
    """How reasoning is given beside its own text, for clients that look elsewhere.

    Args:
        carried: as ``encrypted_content``, to be brought back.
        summary: as its own summary, to be shown.
    """

    carried: bool = False
    summary: bool = False


class ResponseWriter:
    """Writes one response.

    Args:
        response: the object to begin with; it is completed as events come.
        toolbox: the request's tools.
        harmony: for log-probabilities.
        forms: in which reasoning is given.
    """

    def __init__(
        self, response: dict[str, Any], toolbox: Toolbox, harmony: Harmony, forms: ReasoningForms | None = None
    ) -> None:
        self.response = response
        self._toolbox = toolbox
        self._harmony = harmony
        self._forms = forms or ReasoningForms()
        self._sequence = -1
        self._open: _OpenItem | None = None

    def begin(self) -> Iterator[Event]:
        """The events before the first token."""
        yield self._whole("response.created")
        yield self._whole("response.in_progress")

    def write(self, happened: TurnEvent) -> Iterator[Event]:
        """The events that one of the turn's makes."""
        match happened:
            case ReasoningDelta(text=text):
                yield from self._opened("reasoning")
                yield from self._delta("response.reasoning_text.delta", text)
                if self._open is not None and self._forms.summary:
                    yield self._event("response.reasoning_summary_text.delta", **self._open.in_summary, delta=text)
            case Text(text=text, preamble=preamble):
                yield from self._opened("message", phase="commentary" if preamble else "final_answer")
                entries = logprob_entries(self._harmony, happened.logprobs)
                yield from self._delta("response.output_text.delta", text, logprobs=entries)
            case ToolCallDelta(name=name, text=text):
                yield from self._call(name, text)
            case ToolCall(name=name, arguments=arguments):
                yield from self._call(name, "")
                if self._open is not None:
                    self._open.text = arguments
                yield from self._close("completed")
            case MessageEnd():
                yield from self._close("completed")
            case End():
                pass  # `finish` has more to say of it

    def finish(self, end: End, prompt_tokens: int, at: float) -> Iterator[Event]:
        """The events of the end."""
        status = {"length": "incomplete", "cancelled": "cancelled"}.get(end.reason, "completed")
        yield from self._close("completed" if status == "completed" else "incomplete")
        self.response |= {
            "status": status,
            "completed_at": at if status == "completed" else None,
            "usage": response_usage(prompt_tokens, end),
            "timings": timings([end]),
        }
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        yield self._whole("response.completed" if status == "completed" else "response.incomplete")

    def fail(self, problem: Problem, end: End | None = None, prompt_tokens: int = 0) -> Iterator[Event]:
        """The events of an engine that failed in the middle; ``end`` is how far it had come."""
        yield from self._close("incomplete")
        if end is not None:
            self.response |= {"usage": response_usage(prompt_tokens, end), "timings": timings([end])}
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": problem.message}}
        yield self._event("error", code=problem.code, message=problem.message, param=problem.param)
        yield self._whole("response.failed")

    def _call(self, name: str, text: str) -> Iterator[Event]:
        offer = self._toolbox.offer(name)
        if offer is None:
            return
        kind = "custom_tool_call" if offer.custom else "function_call"
        yield from self._opened(kind, name=offer.name, namespace=offer.namespace)
        if offer.custom and self._open is not None:
            self._open.text += text  # JSON: its text can be shown once it is whole
        elif text:
            yield from self._delta("response.function_call_arguments.delta", text)

    def _opened(self, kind: str, **more: Any) -> Iterator[Event]:
        """The item being written, a new one where the last was of another kind."""
        if self._open is not None and self._open.kind == kind and self._open.phase == more.get("phase"):
            return
        yield from self._close("completed")
        self._open = _OpenItem(kind, len(self.response["output"]), more, self._forms)
        self.response["output"].append(self._open.item("in_progress"))
        yield self._event(
            "response.output_item.added", output_index=self._open.index, item=self._open.item("in_progress")
        )
        if self._open.part_type is not None:
            yield self._part("response.content_part.added", "", [])
        if kind == "reasoning" and self._forms.summary:
            yield self._summary_part("response.reasoning_summary_part.added", self._open, "")

    def _delta(self, event: str, text: str, **more: Any) -> Iterator[Event]:
        if self._open is not None and text:
            self._open.text += text
            self._open.logprobs += more.get("logprobs", [])
            yield self._event(event, **self._open.where, delta=text, **more)

    def _close(self, status: str) -> Iterator[Event]:
        """The events that end the item being written."""
        if self._open is None:
            return
        done, self._open = self._open, None
        where, text = done.where, done.text
        match done.kind:
            case "reasoning":
                yield self._event("response.reasoning_text.done", **where, text=text)
                yield self._part("response.content_part.done", text, [], done)
                if self._forms.summary:
                    yield self._event("response.reasoning_summary_text.done", **done.in_summary, text=text)
                    yield self._summary_part("response.reasoning_summary_part.done", done, text)
            case "message":
                yield self._event("response.output_text.done", **where, text=text, logprobs=done.logprobs)
                yield self._part("response.content_part.done", text, done.logprobs, done)
            case "function_call":
                yield self._event("response.function_call_arguments.done", **where, name=done.name, arguments=text)
            case "custom_tool_call":
                yield self._event("response.custom_tool_call_input.delta", **where, delta=input_of(text))
                yield self._event("response.custom_tool_call_input.done", **where, input=input_of(text))
        item = done.item(status)
        self.response["output"][done.index] = item
        yield self._event("response.output_item.done", output_index=done.index, item=item)

    def _part(self, event: str, text: str, logprobs: list[Any], of: _OpenItem | None = None) -> Event:
        item = of or self._open
        assert item is not None
        return self._event(event, **item.where, part=item.part(text, logprobs))

    def _summary_part(self, event: str, of: _OpenItem, text: str) -> Event:
        return self._event(event, **of.in_summary, part=_summary(text))

    def _whole(self, event: str) -> Event:
        return self._event(event, response=self.response | {"output": list(self.response["output"])})

    def _event(self, event: str, **fields: Any) -> Event:
        self._sequence += 1
        return {"type": event, "sequence_number": self._sequence, **fields}


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


class _OpenItem:
    """An output item being written."""

    def __init__(self, kind: str, index: int, more: dict[str, Any], forms: ReasoningForms) -> None:
        self.kind = kind
        self.index = index
        self.id = new_id(kind)
        self.phase = more.get("phase")
        self.name = more.get("name")
        self.text = ""
        self.logprobs: list[Any] = []
        self._namespace = more.get("namespace")
        self._forms = forms
        self._call_id = new_call_id()

    @property
    def part_type(self) -> str | None:
        return {"reasoning": "reasoning_text", "message": "output_text"}.get(self.kind)

    @property
    def where(self) -> dict[str, Any]:
        """How events say what they are about."""
        place: dict[str, Any] = {"item_id": self.id, "output_index": self.index}
        return place if self.part_type is None else place | {"content_index": 0}

    @property
    def in_summary(self) -> dict[str, Any]:
        """The same of a summary's only part."""
        return {"item_id": self.id, "output_index": self.index, "summary_index": 0}

    def part(self, text: str, logprobs: list[Any]) -> dict[str, Any]:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def item(self, status: str) -> Item:
        begun = status == "in_progress"
        head = {"id": self.id, "type": self.kind, "status": status}
        content = [] if begun else [self.part(self.text, self.logprobs)]
        if self.kind == "reasoning":
            sealed = carried(self.text) if self._forms.carried and not begun else None
            summary = [_summary(self.text)] if self._forms.summary and not begun else []
            return head | {"summary": summary, "content": content, "encrypted_content": sealed}
        if self.kind == "message":
            return head | {"role": "assistant", "phase": self.phase, "content": content}
        text = {"input": input_of(self.text)} if self.kind == "custom_tool_call" else {"arguments": self.text}
        namespace = {} if self._namespace is None else {"namespace": self._namespace}
        return head | {"call_id": self._call_id, "name": self.name} | text | namespace
