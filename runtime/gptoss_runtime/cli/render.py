"""Terminal output: answers as they stream (``chat``, ``generate``, ``demo``), and JSON and tables for all commands."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptoss_runtime.chat.conversation import (
    ChatEvent,
    ContentDelta,
    Finish,
    MessageEnd,
    ReasoningDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)
from gptoss_runtime.engine.results import GenerationResult
from gptoss_runtime.errors import GptOssError

if TYPE_CHECKING:
    from gptoss_runtime.artifact.manifest import Range

_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def plain_table(*headings: str) -> Table:
    """Returns a table without box-drawing characters, which a console with code page 437 or 1252 cannot display."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


class EventPrinter:
    """Prints events to a console: reasoning dimmed, tool calls and results on separate lines.

    Args:
        console: the console to print to.
        show_reasoning: whether to print reasoning.
    """

    def __init__(self, console: Console, *, show_reasoning: bool = True) -> None:
        self._console = console
        self._show_reasoning = show_reasoning
        self._open = False  # whether the last line has not been ended

    def print(self, event: ChatEvent) -> None:
        """Prints one event."""
        match event:
            case ReasoningDelta(text=text):
                if self._show_reasoning:
                    self._write(text, "dim italic")
            case ContentDelta(text=text):
                self._write(text, "")
            case MessageEnd() | ToolCallDelta():
                self._end_line()
            case ToolCall(name=name, arguments=arguments):
                self._line(f"→ {name}({arguments})", "cyan")
            case ToolResult(name=name, content=content, failed=failed):
                self._line(f"← {name}: {content}", "red" if failed else "green")
            case Finish():
                self._end_line()
                self._note(event)

    def _note(self, finish: Finish) -> None:
        if finish.reason == "length":
            self._line("[stopped: token limit reached]", "yellow")
        elif finish.reason == "cancelled":
            self._line("[cancelled]", "yellow")
        elif finish.reason == "error":
            self._line("[incomplete: the engine failed]", "red")
        elif finish.malformed:
            self._line("[the model's output is malformed; some text may be missing]", "yellow")

    def _write(self, text: str, style: str) -> None:
        self._console.print(Text(replace_controls(text), style=style), end="", soft_wrap=True)
        self._open = not text.endswith("\n") if text else self._open

    def _line(self, text: str, style: str) -> None:
        self._end_line()
        self._console.print(Text(replace_controls(text), style=style), soft_wrap=True)

    def _end_line(self) -> None:
        if self._open:
            self._console.print()
            self._open = False


def print_events(events: Iterable[ChatEvent], console: Console, *, show_reasoning: bool = True) -> Finish:
    """Prints an answer as it streams and returns its ``Finish``; exceptions of the iterator pass through."""
    printer = EventPrinter(console, show_reasoning=show_reasoning)
    finish = Finish("cancelled")
    for event in events:
        printer.print(event)
        if isinstance(event, Finish):
            finish = event
    return finish


def replace_controls(text: str) -> str:
    """Replaces control characters, so that a model's answer cannot send escape sequences to the terminal."""
    return text.translate(_CONTROLS)


def format_timings(result: GenerationResult) -> str:
    """Formats the speed of a generation as one line."""
    usage, timings = result.usage, result.timings
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    return (
        f"{usage.prompt_tokens} prompt tokens{cached}, {usage.new_tokens} new; first token after "
        f"{timings.time_to_first_token:.2f} s, then {timings.decode_rate:.1f} tokens per second"
    )


def format_range(found: Range | None) -> list[str]:
    """Formats the range of activations: the largest residual stream, and the least headroom to float16's limit."""
    if found is None:
        return ["range: not measured"]
    widest, count = found.widest, len(found.layers)
    where = f"after layer {widest.layer} ({found.tokens} tokens)"
    lines = [f"range: the residual stream reaches {widest.stream:,.0f} {where}"]
    tightest = found.tightest
    if tightest is not None:
        where = "the head" if tightest.layer >= count else f"layer {tightest.layer}"
        lines.append(f"headroom: 2^{tightest.headroom:.1f} to float16's limit at {where} ({tightest.tightest})")
    return lines


def print_json(console: Console, value: object) -> None:
    """Prints a value as JSON on one line, without wrapping or styles."""
    console.file.write(json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n")


def describe_error(error: GptOssError) -> dict[str, str | int | None]:
    """Returns an error as a JSON object: type, message, remedy and exit code."""
    return {
        "type": type(error).__name__,
        "message": error.message,
        "remedy": error.remedy,
        "exit_code": error.exit_code,
    }
