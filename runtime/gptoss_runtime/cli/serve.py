"""``gptoss serve``: the OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptoss_runtime.cli.options import ContextLength, Date, Device, Json, Threads
from gptoss_runtime.server.settings import DEFAULT_HOST, DEFAULT_PORT


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model's name or an artifact folder, loaded at once; without it, models load when asked for."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; outside loopback an API key is needed.")
    ] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = DEFAULT_PORT,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="GPTOSS_API_KEY", show_envvar=True, help="What clients must send; better set in GPTOSS_API_KEY."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name, or name:port, that clients may call this server by; may be repeated."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web origin whose pages may call this server; may be repeated.")
    ] = None,
    artifacts: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder with NAME/TARGET/ below it to look for models in, before the cache; may be repeated. "
            "By default those in GPTOSS_ARTIFACTS; never the working folder's."
        ),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="Execution provider; by default the one that the artifact was converted for.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    context_length: ContextLength = None,
    slots: Annotated[int, typer.Option(help="Answers that advance at once.")] = 4,
    queue: Annotated[int, typer.Option(help="Requests that may wait beside them; more are refused with 503.")] = 64,
    ttl: Annotated[float, typer.Option(help="Seconds without a request until a model is unloaded; 0: never.")] = 0.0,
    max_loaded: Annotated[int, typer.Option(help="Models in memory at once.")] = 1,
    date: Date = True,
    json_output: Json = False,
) -> None:
    """Serve models over OpenAI's API, Foundry Local's routes and a web page."""
    from rich.console import Console

    from gptoss_runtime.cli.render import print_json
    from gptoss_runtime.errors import BackendUnavailable, InvalidRequest

    try:
        from gptoss_runtime.server.engine_options import EngineOptions
        from gptoss_runtime.server.model_host import ModelHost
        from gptoss_runtime.server.run import run
        from gptoss_runtime.server.served_models import ServedModels
        from gptoss_runtime.server.settings import Settings
    except ImportError as error:
        raise BackendUnavailable(
            f"the server's packages are not installed: {error}", remedy='pip install "gptoss-windows[server]"'
        ) from error
    from gptoss_runtime.models import Registry

    for name, value, low in (("slots", slots, 1), ("queue", queue, 0), ("ttl", ttl, 0), ("max-loaded", max_loaded, 1)):
        if not value >= low:
            raise InvalidRequest(f"{name} is {value}", remedy=f"Set --{name} to {low} or more.")
    settings = Settings(
        host=host,
        port=port,
        api_key=api_key,
        allow_hosts=tuple(allow_host or ()),
        allow_origins=tuple(allow_origin or ()),
        tell_date=date,
    )
    options = EngineOptions(provider, device, threads, context_length, slots, queue)
    served = ServedModels.from_argument(model, Registry(search=artifacts or None, working_folder=False))
    models = ModelHost(served, options.load, max_loaded=max_loaded, ttl=ttl or None, max_turns=slots + queue)
    console = Console(highlight=False, soft_wrap=True)

    def ready(url: str) -> None:
        if json_output:  # for a program that started this one
            print_json(console, {"url": url, "model": served.default})
            console.file.flush()
            return
        console.print(f"gptoss serves {served.default or 'the models on this machine'} at {url}", markup=False)
        console.print(f"OpenAI API: {url}/v1    page: {url}/    Ctrl+C stops", markup=False)

    run(settings, models, ready=ready)
    if not json_output:
        console.print("stopped")
