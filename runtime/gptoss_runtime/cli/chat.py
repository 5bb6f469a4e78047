"""``gptoss chat``: a conversation in the terminal, or with input from a pipe."""

from __future__ import annotations

import datetime
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_runtime.cli.options import (
    ContextLength,
    Date,
    Device,
    EffortOption,
    MaxNewTokens,
    Model,
    Provider,
    Seed,
    Temperature,
    Threads,
    TopK,
    TopP,
    locate_model,
    parse_effort,
)
from gptoss_runtime.errors import ContextOverflow, InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_runtime.chat.chat import Chat

HELP = """/help            show this list
/effort LEVEL    set the reasoning effort: low, medium or high
/reset           start a new conversation
/exit            quit (also Ctrl+D; Ctrl+C stops an answer)"""


def chat(
    model: Model,
    instructions: Annotated[str | None, typer.Option(help="Instructions at the start of the prompt.")] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = None,
    effort: EffortOption = "medium",
    provider: Provider = None,
    device: Device = None,
    threads: Threads = None,
    context_length: ContextLength = None,
    date: Date = True,
    hide_reasoning: Annotated[bool, typer.Option("--hide-reasoning", help="Do not show reasoning.")] = False,
) -> None:
    """Chat with a model; /help lists the commands in the chat."""
    from rich.console import Console

    from gptoss_runtime.chat.chat import Chat
    from gptoss_runtime.engine.options import GenerationOptions

    options = GenerationOptions(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    folder, provider = locate_model(model, provider)
    conversation = Chat.load(
        folder,
        provider=provider,
        device=device,
        threads=threads,
        context_length=context_length,
        instructions=instructions,
        effort=parse_effort(effort),
        options=options,
        date=datetime.date.today() if date else None,
    )
    with conversation.engine:
        ChatSession(conversation, Console(highlight=False), show_reasoning=not hide_reasoning).run()


class ChatSession:
    """Reads lines, runs chat commands and prints answers."""

    def __init__(self, chat: Chat, console: Console, *, show_reasoning: bool = True) -> None:
        self._chat = chat
        self._console = console
        self._show_reasoning = show_reasoning
        self._interactive = sys.stdin.isatty()

    def run(self) -> None:
        """Runs until /exit or the end of input."""
        if self._interactive:
            info = self._chat.engine.info
            self._console.print(f"{info.name} on {info.provider}. /help lists the commands.", style="bold")
        while True:
            line = self._read()
            if line is None or line.strip() in ("/exit", "/quit"):
                return
            if line.strip().startswith("/"):
                self._run_command(line.strip())
            elif line.strip():
                self._answer(line)

    def _read(self) -> str | None:
        if not self._interactive:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        try:
            return self._console.input("[bold green]> [/]")
        except EOFError:
            return None

    def _run_command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        match name:
            case "/help":
                self._console.print(HELP, markup=False)
            case "/reset":
                self._chat.reset()
                self._console.print("Started a new conversation.")
            case "/effort":
                try:
                    self._chat.effort = parse_effort(argument.strip())
                    self._console.print(f"Effort is {self._chat.effort}.")
                except InvalidRequest as error:
                    self._console.print(str(error), markup=False)
            case _:
                self._console.print(f"Unknown command {name}. /help lists the commands.", markup=False)

    def _answer(self, text: str) -> None:
        from gptoss_runtime.cli.render import format_timings, print_events

        try:
            finish = print_events(self._chat.stream(text), self._console, show_reasoning=self._show_reasoning)
        except KeyboardInterrupt:
            self._chat.cancel()
            self._console.print("[stopped]", markup=False)
            return
        except ContextOverflow as error:
            self._console.print(f"{error.message}\n/reset starts a new conversation.", markup=False)
            return
        if self._interactive and finish.result is not None:
            self._console.print(format_timings(finish.result), style="dim")
