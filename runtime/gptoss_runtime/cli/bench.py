"""``gptoss bench``: measures an artifact's speed and memory on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from gptoss_runtime.cli.options import ContextLength, Device, Json, Model, Provider, Threads, locate_model


def bench(
    model: Model,
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompt in tokens.")] = 256,
    new_tokens: Annotated[int, typer.Option(help="Number of tokens to generate.")] = 64,
    repeat: Annotated[int, typer.Option(help="Number of runs; the medians are reported.")] = 3,
    provider: Provider = None,
    device: Device = None,
    threads: Threads = None,
    context_length: ContextLength = None,
    json_output: Json = False,
) -> None:
    """Measure load time, time to first token, prefill and decode speed, and peak memory."""
    from rich.console import Console
    from rich.table import Table

    from gptoss_runtime.bench import bench as measure
    from gptoss_runtime.cli.render import print_json

    folder, provider = locate_model(model, provider)
    report = measure(
        folder,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeat=repeat,
        provider=provider,
        device=device,
        threads=threads,
        context_length=context_length,
    )
    console = Console(highlight=False)
    if json_output:
        print_json(console, report.to_dict())
        return
    table = Table(title=f"{report.name} ({report.target}) on {report.provider}, medians of {report.repeat}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row("load", f"{report.load_seconds:.2f} s")
    table.add_row("time to first token", f"{report.time_to_first_token:.3f} s")
    table.add_row(f"prefill ({report.prompt_tokens} tokens)", f"{report.prefill_rate:,.0f} tok/s")
    table.add_row(f"decode ({report.new_tokens} tokens)", f"{report.decode_rate:,.1f} tok/s")
    table.add_row("peak memory", f"{report.peak_memory / 2**20:,.0f} MB")
    console.print(table)
