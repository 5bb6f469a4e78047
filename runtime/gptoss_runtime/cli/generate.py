"""``gptoss generate``: answers one prompt, or continues text or token ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_runtime.cli.options import (
    ContextLength,
    Device,
    EffortOption,
    Json,
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
from gptoss_runtime.errors import GptOssError, InvalidRequest
from gptoss_runtime.harmony_tokens import STOP_TOKENS

if TYPE_CHECKING:
    from gptoss_runtime.chat.conversation import Effort
    from gptoss_runtime.engine.base import Engine
    from gptoss_runtime.engine.options import GenerationOptions
    from gptoss_runtime.engine.results import GenerationResult


def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The user's message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without the chat format (harmony).")
    ] = False,
    ids: Annotated[str | None, typer.Option("--ids", help="Continue these token ids, such as 1,2,3.")] = None,
    max_new_tokens: MaxNewTokens = 1024,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = None,
    effort: EffortOption = "medium",
    provider: Provider = None,
    device: Device = None,
    threads: Threads = None,
    context_length: ContextLength = None,
    json_output: Json = False,
) -> None:
    """Answer one prompt, or continue text or token ids."""
    from gptoss_runtime.engine.loading import load_engine
    from gptoss_runtime.engine.options import GenerationOptions

    if (prompt is None) == (ids is None):
        raise InvalidRequest("exactly one prompt is needed", remedy="Pass either --prompt TEXT or --ids 1,2,3.")
    token_ids = None if ids is None else parse_ids(ids)
    options = GenerationOptions(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    level = parse_effort(effort)
    folder, provider = locate_model(model, provider)
    with load_engine(
        folder, provider=provider, device=device, threads=threads, context_length=context_length
    ) as engine:
        if token_ids is not None:
            _continue_ids(engine, token_ids, options, json_output)
        elif raw:
            _continue_text(engine, folder, prompt or "", options, json_output)
        else:
            _answer(engine, folder, prompt or "", options, level, json_output)


def parse_ids(text: str) -> list[int]:
    """Parses token ids such as "1,2,3".

    Raises:
        InvalidRequest: the text is not a list of integers separated by commas.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidRequest(f"--ids {text[:40]!r} are not token ids", remedy="Write them as 1,2,3.") from error


def _continue_ids(engine: Engine, ids: list[int], options: GenerationOptions, json_output: bool) -> None:
    new: list[int] = []

    def finish() -> None:
        if json_output:
            _print_report({"prompt_ids": ids, "ids": new}, generation.result)
        else:
            typer.echo()

    with engine.generate(ids, options) as generation, _finishing(finish):
        for token in generation:
            new.append(token)
            if not json_output:
                typer.echo(token if len(new) == 1 else f",{token}", nl=False)


def _continue_text(engine: Engine, folder: Path, prompt: str, options: GenerationOptions, json_output: bool) -> None:
    from gptoss_runtime.artifact.folder import TOKENIZER
    from gptoss_runtime.chat.harmony import Harmony
    from gptoss_runtime.cli.render import replace_controls

    harmony = Harmony.load(folder / TOKENIZER)
    ids = harmony.encode(prompt)
    new: list[int] = []
    pending: list[int] = []

    def finish() -> None:
        if json_output:
            _print_report({"prompt_ids": ids, "ids": new, "text": harmony.decode(new)}, generation.result)
        else:
            typer.echo(replace_controls(harmony.decode(pending)))

    with engine.generate(ids, options) as generation, _finishing(finish):
        for token in generation:
            new.append(token)
            pending.append(token)
            text = harmony.decode(pending)
            if not json_output and not text.endswith("\ufffd"):  # an incomplete character: wait for the next token
                typer.echo(replace_controls(text), nl=False)
                pending.clear()


def _answer(
    engine: Engine, folder: Path, prompt: str, options: GenerationOptions, effort: Effort, json_output: bool
) -> None:
    from rich.console import Console

    from gptoss_runtime.artifact.folder import TOKENIZER
    from gptoss_runtime.chat.conversation import ChatEvent, ContentDelta, Finish, Message, ReasoningDelta
    from gptoss_runtime.chat.harmony import Harmony
    from gptoss_runtime.cli.render import print_events

    harmony = Harmony.load(folder / TOKENIZER)
    ids = harmony.render([Message("user", prompt)], effort=effort)
    parser = harmony.parser()
    events: list[ChatEvent] = []

    def finish() -> None:
        content = {
            "prompt_ids": ids,
            "ids": parser.tokens,
            "text": "".join(event.text for event in events if isinstance(event, ContentDelta)),
            "reasoning": "".join(event.text for event in events if isinstance(event, ReasoningDelta)),
            "malformed": any(event.malformed for event in events if isinstance(event, Finish)),
        }
        _print_report(content, generation.result)

    with engine.generate(ids, replace(options, stop_token_ids=STOP_TOKENS)) as generation:
        if not json_output:
            print_events(parser.stream(generation), Console(highlight=False))
            return
        with _finishing(finish):
            for event in parser.stream(generation):
                events.append(event)


@contextmanager
def _finishing(finish: Callable[[], None]) -> Iterator[None]:
    """Finishes the output when the generation has ended, also after an error, so that a partial answer is printed."""
    try:
        yield
    except GptOssError:
        finish()
        raise
    finish()


def _print_report(content: dict[str, Any], result: GenerationResult) -> None:
    from rich.console import Console

    from gptoss_runtime.cli.render import print_json

    print_json(Console(), content | asdict(result))
