"""``gptoss demo``: writes nano, converts it and asks it three questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gptoss_convert.cli.common import Cost, conversion_bars, folder_size
from gptoss_runtime.cli.options import Json


def demo(
    root: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the checkpoint and the artifact.")
    ] = Path("artifacts"),
    json_output: Json = False,
) -> None:
    """Write nano's checkpoint, convert it for the CPU, and ask it three questions, one of them with a tool."""
    from rich.console import Console

    from gptoss_convert.demo import Paths
    from gptoss_convert.nano import materialise
    from gptoss_convert.workflow import Options, convert
    from gptoss_runtime.cli.render import print_json

    total, console, paths = Cost(), Console(highlight=False, soft_wrap=True, quiet=json_output), Paths(root)
    cost = Cost()
    materialise(paths.checkpoint, overwrite=True)
    console.print(f"[1/3] checkpoint  {folder_size(paths.checkpoint) / 1e6:,.0f} MB in {paths.checkpoint} ({cost})")
    report: dict[str, Any] = {"checkpoint": str(paths.checkpoint), "materialise_seconds": cost.seconds}
    cost = Cost()
    with conversion_bars() as (progress, check_progress):
        options = Options(overwrite=True)
        convert(paths.checkpoint, paths.artifact, options=options, progress=progress, check_progress=check_progress)
    console.print(f"[2/3] artifact    {folder_size(paths.artifact) / 1e6:,.0f} MB in {paths.artifact} ({cost})")
    report |= {"artifact": str(paths.artifact), "convert_seconds": cost.seconds}
    console.print("[3/3] questions")
    report["answers"] = _ask(console, paths.artifact)
    report |= {"seconds": total.seconds, "peak_memory": total.peak_memory}
    if json_output:
        print_json(Console(), report)
        return
    console.print(f"\nTotal: {total}. Next: gptoss chat {paths.artifact}")


def _ask(console: Any, artifact: Path) -> list[dict[str, Any]]:
    from gptoss_convert.demo import open_chats
    from gptoss_runtime.chat.conversation import ContentDelta, Finish, ToolCall
    from gptoss_runtime.cli.render import EventPrinter, format_timings

    answers = []
    with open_chats(artifact) as asked:
        for question, chat in asked:
            console.print(f"\n> {question.text}", style="bold")
            printer, texts, calls, finish = EventPrinter(console), [], [], Finish("cancelled")
            for event in chat.stream(question.text):
                printer.print(event)
                match event:
                    case ContentDelta(text=text):
                        texts.append(text)
                    case ToolCall(name=name, arguments=arguments):
                        calls.append({"name": name, "arguments": arguments})
                    case Finish():
                        finish = event
            assert finish.result is not None
            console.print(format_timings(finish.result), style="dim")
            usage = finish.result.usage
            answers.append(
                {
                    "question": question.text,
                    "answer": "".join(texts),
                    "tool_calls": calls,
                    "finish_reason": finish.reason,
                    "new_tokens": usage.new_tokens,
                    "decode_rate": finish.result.timings.decode_rate,
                }
            )
    return answers
