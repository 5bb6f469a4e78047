"""A conversation with a model: history, tools, reasoning effort, streaming events.

Knows messages, tools and events; knows neither harmony's tokens nor onnxruntime-genai.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptoss_runtime.chat.conversation import (
    ContentDelta,
    Effort,
    Event,
    Finish,
    Message,
    ReasoningDelta,
    Tool,
    ToolCall,
    ToolResult,
)
from gptoss_runtime.engine.base import Engine, Generation
from gptoss_runtime.engine.loading import load_engine
from gptoss_runtime.engine.options import GenerationOptions
from gptoss_runtime.errors import InvalidRequest
from gptoss_runtime.harmony_tokens import STOP_TOKENS

if TYPE_CHECKING:
    from gptoss_runtime.chat.harmony import Harmony


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one ``send``: the texts, the calls left to the caller, and how it ended."""

    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish: Finish


class Chat:
    """A conversation on an engine.

    A turn that ends by itself is added to ``messages``; one that fails, is cancelled or is abandoned leaves them as
    they were. One turn at a time.

    Args:
        engine: what generates.
        harmony: the format, of the same artifact.
        instructions: told to the model before everything else.
        tools: what the model may call. Those with a function are run here; for the others the turn ends with
            "tool_calls" and goes on after ``add_tool_result``.
        effort: how long the model reasons.
        options: sampling; harmony's stop tokens take the place of its ``stop_token_ids``.
        date: told to the model as the current date when given.
        max_steps: generations in one turn at most, so that a model that keeps calling tools ends.
    """

    def __init__(
        self,
        engine: Engine,
        harmony: Harmony,
        *,
        instructions: str | None = None,
        tools: Sequence[Tool] = (),
        effort: Effort = "medium",
        options: GenerationOptions | None = None,
        date: datetime.date | None = None,
        max_steps: int = 8,
    ) -> None:
        if max_steps < 1:
            raise InvalidRequest(f"max_steps is {max_steps}", remedy="Set max_steps to 1 or more.")
        self.engine = engine
        self.harmony = harmony
        self.tools = tuple(tools)
        self.effort: Effort = effort
        self.options = options or GenerationOptions()
        self.date = date
        self.max_steps = max_steps
        self._instructions = [Message("developer", instructions)] if instructions else []
        self.messages: list[Message] = list(self._instructions)
        self._generation: Generation | None = None
        self._cancelled = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        provider: str = "cpu",
        device: int | str | None = None,
        threads: int | None = None,
        context_length: int | None = None,
        **settings: Any,
    ) -> Chat:
        """A chat on an artifact; arguments as ``load_engine``'s, ``settings`` as the constructor's."""
        from gptoss_runtime.artifact.folder import TOKENIZER, Artifact
        from gptoss_runtime.chat.harmony import Harmony

        artifact = Artifact.open(path)
        harmony = Harmony.load(artifact.path / TOKENIZER)  # first: it fails fast
        engine = load_engine(path, provider=provider, device=device, threads=threads, context_length=context_length)
        return cls(engine, harmony, **settings)

    def send(self, text: str) -> Reply:
        """Says something and waits for the whole answer. Raises as ``stream`` and its iterator."""
        content: list[str] = []
        reasoning: list[str] = []
        finish = Finish("stop")
        for event in self.stream(text):
            match event:
                case ContentDelta(text=delta):
                    content.append(delta)
                case ReasoningDelta(text=delta):
                    reasoning.append(delta)
                case Finish():
                    finish = event
        calls = self.messages[-1].tool_calls if finish.reason == "tool_calls" else ()
        return Reply("".join(content), "".join(reasoning), calls, finish)

    def stream(self, text: str | None = None) -> Iterator[Event]:
        """Says something and gives the answer's events as they come; the last is ``Finish``.

        Where the engine fails, the iterator gives a ``Finish`` whose reason is "error" and then raises the
        ``GptOssError``: ``NumericalError`` where the model's logits are not finite.

        Args:
            text: what the user says; ``None`` goes on after ``add_tool_result``.

        Raises:
            InvalidRequest: nothing to answer, or the conversation cannot be rendered.
            ContextOverflow: the conversation no longer fits; ``reset`` or drop some of ``messages``.
        """
        turn = list(self.messages)
        if text is not None:
            turn.append(Message("user", text))
        if not turn or turn[-1].role not in ("user", "tool"):
            raise InvalidRequest("there is nothing to answer", remedy="Say something, or add a tool's result.")
        self._cancelled = False
        return self._turn(turn)

    def add_tool_result(self, name: str, content: str) -> None:
        """Supplies the result of a tool the model called; then ``stream()`` goes on."""
        self.messages.append(Message("tool", content, name=name))

    def cancel(self) -> None:
        """Ends the turn being generated; thread-safe."""
        self._cancelled = True
        generation = self._generation
        if generation is not None:
            generation.cancel()

    def reset(self) -> None:
        """Forgets the conversation; instructions and tools stay."""
        self.messages = list(self._instructions)

    def _turn(self, turn: list[Message]) -> Iterator[Event]:
        for step in range(self.max_steps):
            answer, finish = yield from self._answer(turn)
            if finish.reason == "cancelled":
                yield finish
                return
            turn.append(answer)
            runnable = finish.reason == "tool_calls" and all(self._runs(call) for call in answer.tool_calls)
            if not runnable or step + 1 == self.max_steps:
                self.messages = turn
                yield finish
                return
            for call in answer.tool_calls:
                result = self._run(call)
                turn.append(Message("tool", result.content, name=result.name))
                yield result

    def _answer(self, turn: list[Message]) -> Generator[Event, None, tuple[Message, Finish]]:
        """One generation: its events but the last, which it returns with the message they make."""
        ids = self.harmony.render(turn, tools=self.tools, effort=self.effort, date=self.date)
        parser = self.harmony.parser()
        texts: dict[type, list[str]] = {ContentDelta: [], ReasoningDelta: []}
        calls: list[ToolCall] = []
        finish = Finish("stop")
        with self._generating(ids) as generation:
            for event in parser.stream(generation):
                match event:
                    case ContentDelta() | ReasoningDelta():
                        texts[type(event)].append(event.text)
                    case ToolCall():
                        calls.append(event)
                    case Finish() if event.reason != "error":  # after which the parser raises
                        finish = event
                        continue
                yield event
        content, reasoning = "".join(texts[ContentDelta]), "".join(texts[ReasoningDelta])
        return Message("assistant", content, reasoning, tuple(calls)), finish

    @contextmanager
    def _generating(self, ids: list[int]) -> Iterator[Generation]:
        """A generation that ``cancel`` can reach, also if it was called just before."""
        options = replace(self.options, stop_token_ids=STOP_TOKENS)
        with self.engine.generate(ids, options) as generation:
            self._generation = generation
            try:
                if self._cancelled:
                    generation.cancel()
                yield generation
            finally:
                self._generation = None

    def _runs(self, call: ToolCall) -> bool:
        """Whether a call is answered here: its tool has a function, or is unknown (the model is told so)."""
        tool = self._tool(call.name)
        return tool is None or tool.function is not None

    def _run(self, call: ToolCall) -> ToolResult:
        tool = self._tool(call.name)
        try:
            if tool is None or tool.function is None:
                raise LookupError(f"there is no tool {call.name}")
            arguments = json.loads(call.arguments or "{}")
            if not isinstance(arguments, dict):
                raise TypeError("the arguments are not a JSON object")
            value = tool.function(**arguments)
            return ToolResult(call.name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        except Exception as error:  # a tool is the user's code: whatever it raises, the model is told
            return ToolResult(call.name, json.dumps({"error": f"{type(error).__name__}: {error}"}), failed=True)

    def _tool(self, name: str) -> Tool | None:
        return next((tool for tool in self.tools if tool.name == name), None)
