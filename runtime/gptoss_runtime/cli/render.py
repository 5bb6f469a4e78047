"""Prints an answer's events as they stream (``chat``, ``generate``, ``demo``), and JSON and tables for all commands."""

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

if TYPE_CHECKING:
    from gptoss_runtime.artifact.manifest import Range

_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def plain_table(*headings: str) -> Table:
    """A table of letters and spaces: what draws boxes elsewhere is garbage in a console of code page 437 or 1252."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


class EventPrinter:
    """Prints events to a console, reasoning dimmed, tool calls and results on lines of their own.

    Args:
        console: where to.
        show_reasoning: whether reasoning is printed at all.
    """

    def __init__(self, console: Console, *, show_reasoning: bool = True) -> None:
        self._console = console
        self._show_reasoning = show_reasoning
        self._open = False  # whether the cursor is inside a line

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
            self._line("[cut: no room for more tokens]", "yellow")
        elif finish.reason == "cancelled":
            self._line("[cancelled]", "yellow")
        elif finish.reason == "error":
            self._line("[not finished: the engine failed]", "red")
        elif finish.malformed:
            self._line("[the model left its format; some text may be missing]", "yellow")

    def _write(self, text: str, style: str) -> None:
        self._console.print(Text(visible(text), style=style), end="", soft_wrap=True)
        self._open = not text.endswith("\n") if text else self._open

    def _line(self, text: str, style: str) -> None:
        self._end_line()
        self._console.print(Text(visible(text), style=style), soft_wrap=True)

    def _end_line(self) -> None:
        if self._open:
            self._console.print()
            self._open = False


def print_events(events: Iterable[ChatEvent], console: Console, *, show_reasoning: bool = True) -> Finish:
    """Prints a whole answer as it streams and returns how it ended; raises what the events' iterator does."""
    printer = EventPrinter(console, show_reasoning=show_reasoning)
    finish = Finish("cancelled")
    for event in events:
        printer.print(event)
        if isinstance(event, Finish):
            finish = event
    return finish


def visible(text: str) -> str:
    """Text without control characters: a model's answer must not drive the terminal (ESC sequences)."""
    return text.translate(_CONTROLS)


def timing_line(result: GenerationResult) -> str:
    """One line on a generation's speed."""
    usage, timings = result.usage, result.timings
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    return (
        f"{usage.prompt_tokens} prompt tokens{cached}, {usage.new_tokens} new; first token after "
        f"{timings.time_to_first_token:.2f} s, then {timings.decode_rate:.1f} tokens a second"
    )


def range_lines(found: Range | None) -> list[str]:
    """How large a conversion's first run got, a line each: the stream, and what is closest to float16's limit."""
    if found is None:
        return ["range: not measured"]
    widest, count = found.widest, len(found.layers)
    lines = [f"range: the stream reaches {widest.stream:,.0f} after layer {widest.layer} ({found.tokens} tokens)"]
    tightest = found.tightest
    if tightest is not None:
        where = "the head" if tightest.layer >= count else f"layer {tightest.layer}"
        lines.append(f"headroom: 2^{tightest.headroom:.1f} to float16's limit at {where} ({tightest.tightest})")
    return lines


def print_json(console: Console, value: object) -> None:
    """One JSON object on one line, unwrapped and unstyled."""
    console.file.write(json.dumps(value, ensure_ascii=True, allow_nan=False) + "\n")
