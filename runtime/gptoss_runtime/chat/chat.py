"""A conversation with a model: history, tools, reasoning effort, streaming events.

Knows messages, tools and events; knows nothing of harmony's format and onnxruntime-genai.
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
    ChatEvent,
    ContentDelta,
    Effort,
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
    """The result of ``Chat.send``: the texts, the tool calls left to the caller, and how the turn ended."""

    content: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish: Finish


class Chat:
    """A conversation on an engine.

    A completed turn is added to ``messages``; a turn that fails, is cancelled or is abandoned leaves them unchanged.
    Not thread-safe, except ``cancel``; one turn at a time.

    Args:
        engine: the engine.
        harmony: the format, loaded from the same artifact.
        instructions: the developer message at the start of the conversation.
        tools: the functions that the model may call. Those with a ``function`` are run here; for others the turn ends
            with "tool_calls" and continues after ``add_tool_result``.
        effort: the reasoning effort.
        options: sampling options; their ``stop_token_ids`` are replaced by harmony's.
        date: the current date to tell the model, if any.
        max_steps: maximum number of generations per turn, which bounds a model that keeps calling tools.
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
        """Loads an artifact; the arguments are those of ``load_engine``, ``settings`` those of the constructor."""
        from gptoss_runtime.artifact.folder import TOKENIZER, Artifact
        from gptoss_runtime.chat.harmony import Harmony

        artifact = Artifact.open(path)
        harmony = Harmony.load(artifact.path / TOKENIZER)  # before the engine, which takes longer to load
        engine = load_engine(path, provider=provider, device=device, threads=threads, context_length=context_length)
        return cls(engine, harmony, **settings)

    def send(self, text: str) -> Reply:
        """Sends a user message and waits for the whole answer. Raises as ``stream`` and its iterator."""
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

    def stream(self, text: str | None = None) -> Iterator[ChatEvent]:
        """Sends a user message and streams the answer's events; the last is ``Finish``.

        If the engine fails, the iterator yields a ``Finish`` whose reason is "error" and then raises the
        ``GptOssError``: ``NumericalError`` if the model's logits are not finite.

        Args:
            text: the user's message; ``None`` continues after ``add_tool_result``.

        Raises:
            InvalidRequest: there is nothing to answer, or the conversation cannot be rendered.
            ContextOverflow: the conversation no longer fits; ``reset`` it or remove some of ``messages``.
        """
        turn = list(self.messages)
        if text is not None:
            turn.append(Message("user", text))
        if not turn or turn[-1].role not in ("user", "tool"):
            raise InvalidRequest("there is nothing to answer", remedy="Pass a text, or add a tool's result.")
        self._cancelled = False
        return self._run_turn(turn)

    def add_tool_result(self, name: str, content: str) -> None:
        """Adds the result of a tool that the model called; ``stream()`` then continues the turn."""
        self.messages.append(Message("tool", content, name=name))

    def cancel(self) -> None:
        """Cancels the running turn; thread-safe."""
        self._cancelled = True
        generation = self._generation
        if generation is not None:
            generation.cancel()

    def reset(self) -> None:
        """Clears the conversation; instructions and tools stay."""
        self.messages = list(self._instructions)

    def _run_turn(self, turn: list[Message]) -> Iterator[ChatEvent]:
        """Alternates answers and tool calls until the turn ends."""
        for step in range(self.max_steps):
            answer, finish = yield from self._generate_answer(turn)
            if finish.reason == "cancelled":
                yield finish
                return
            turn.append(answer)
            runnable = finish.reason == "tool_calls" and all(self._can_run(call) for call in answer.tool_calls)
            if not runnable or step + 1 == self.max_steps:
                self.messages = turn
                yield finish
                return
            for call in answer.tool_calls:
                result = self._run_tool(call)
                turn.append(Message("tool", result.content, name=result.name))
                yield result

    def _generate_answer(self, turn: list[Message]) -> Generator[ChatEvent, None, tuple[Message, Finish]]:
        """Runs one generation: yields its events except ``Finish``, and returns the message and ``Finish``."""
        ids = self.harmony.render(turn, tools=self.tools, effort=self.effort, date=self.date)
        parser = self.harmony.parser()
        texts: dict[type, list[str]] = {ContentDelta: [], ReasoningDelta: []}
        calls: list[ToolCall] = []
        finish = Finish("stop")
        with self._start_generation(ids) as generation:
            for event in parser.stream(generation):
                match event:
                    case ContentDelta() | ReasoningDelta():
                        texts[type(event)].append(event.text)
                    case ToolCall():
                        calls.append(event)
                    case Finish() if event.reason != "error":  # after "error" the parser raises
                        finish = event
                        continue
                yield event
        content, reasoning = "".join(texts[ContentDelta]), "".join(texts[ReasoningDelta])
        return Message("assistant", content, reasoning, tuple(calls)), finish

    @contextmanager
    def _start_generation(self, ids: list[int]) -> Iterator[Generation]:
        """Starts a generation that ``cancel`` can cancel, even if it was called just before."""
        options = replace(self.options, stop_token_ids=STOP_TOKENS)
        with self.engine.generate(ids, options) as generation:
            self._generation = generation
            try:
                if self._cancelled:
                    generation.cancel()
                yield generation
            finally:
                self._generation = None

    def _can_run(self, call: ToolCall) -> bool:
        """Whether a call is answered here: its tool has a function, or is unknown, which is an error result."""
        tool = self._find_tool(call.name)
        return tool is None or tool.function is not None

    def _run_tool(self, call: ToolCall) -> ToolResult:
        tool = self._find_tool(call.name)
        try:
            if tool is None or tool.function is None:
                raise LookupError(f"there is no tool {call.name}")
            arguments = json.loads(call.arguments or "{}")
            if not isinstance(arguments, dict):
                raise TypeError("the arguments are not a JSON object")
            value = tool.function(**arguments)
            return ToolResult(call.name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        except Exception as error:  # a tool is user code and may raise anything; the model gets the error
            return ToolResult(call.name, json.dumps({"error": f"{type(error).__name__}: {error}"}), failed=True)

    def _find_tool(self, name: str) -> Tool | None:
        return next((tool for tool in self.tools if tool.name == name), None)
