"""``gptoss serve``: the OpenAI-compatible server.

With ``--json`` the command prints one JSON object on stdout for the program that started it: ``{"url", "model"}`` when
the server accepts connections, or ``{"error": {"type", "message", "remedy", "exit_code"}}`` if it cannot start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptoss_runtime.cli.options import ContextLength, Date, Device, Threads
from gptoss_runtime.server.settings import DEFAULT_HOST, DEFAULT_PORT

if TYPE_CHECKING:
    from gptoss_runtime.server.engine_options import EngineOptions
    from gptoss_runtime.server.settings import Settings


def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Name of a model, or an artifact folder, to load at startup; without it, models load on request."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; addresses other than loopback require an API key.")
    ] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 selects a free port.")] = DEFAULT_PORT,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="GPTOSS_API_KEY",
            show_envvar=True,
            help="Key that clients must send; prefer GPTOSS_API_KEY.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name, or name:port, that clients may use for this server; may be repeated."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin whose pages may call this server; may be repeated.")
    ] = None,
    artifacts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder that contains models as NAME/TARGET/, searched before the cache; may be repeated. By default "
            "the folders in GPTOSS_ARTIFACTS; the working folder is not searched."
        ),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="Execution provider; by default the one that the artifact was converted for.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    context_length: ContextLength = None,
    slots: Annotated[int, typer.Option(help="Number of answers generated concurrently.")] = 4,
    queue: Annotated[int, typer.Option(help="Number of requests that may wait; further ones get status 503.")] = 64,
    ttl: Annotated[
        float, typer.Option(help="Seconds without a request after which a model is unloaded; 0 means never.")
    ] = 0.0,
    max_loaded: Annotated[int, typer.Option(help="Number of models in memory at the same time.")] = 1,
    date: Date = True,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the URL and the model, or the error, as one JSON object.")
    ] = False,
) -> None:
    """Serve models over OpenAI's API, Foundry Local's routes and a web page."""
    from rich.console import Console

    from gptoss_runtime.cli.render import describe_error, print_json
    from gptoss_runtime.errors import GptOssError, InvalidRequest
    from gptoss_runtime.server.engine_options import EngineOptions
    from gptoss_runtime.server.settings import Settings

    console = Console(highlight=False, soft_wrap=True)
    is_ready = False

    def report_ready(url: str, default: str | None) -> None:
        nonlocal is_ready
        is_ready = True
        if json_output:
            print_json(console, {"url": url, "model": default})
            console.file.flush()
            return
        console.print(f"gptoss serves {default or 'the models on this machine'} at {url}", markup=False)
        console.print(f"OpenAI API: {url}/v1    web page: {url}/    Ctrl+C stops the server", markup=False)

    try:
        minimums = (("slots", slots, 1), ("queue", queue, 0), ("ttl", ttl, 0), ("max-loaded", max_loaded, 1))
        for name, value, low in minimums:
            if not value >= low:  # also true for NaN
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
        host_options = {"max_loaded": max_loaded, "ttl": ttl or None, "max_turns": slots + queue}
        _run_server(model, artifacts, settings, options, report_ready, **host_options)
    except GptOssError as error:
        if json_output and not is_ready:
            print_json(console, {"error": describe_error(error)})
            console.file.flush()
        raise
    if not json_output:
        console.print("stopped")


def _run_server(
    model: str | None,
    artifacts: list[Path] | None,
    settings: Settings,
    options: EngineOptions,
    ready: Callable[[str, str | None], None],
    **host_options: Any,
) -> None:
    from gptoss_runtime.errors import BackendUnavailable
    from gptoss_runtime.models import Registry

    try:
        from gptoss_runtime.server.model_host import ModelHost
        from gptoss_runtime.server.run import run
        from gptoss_runtime.server.served_models import ServedModels
    except ImportError as error:
        raise BackendUnavailable(
            f"the server's packages are not installed: {error}", remedy='pip install "gptoss-windows[server]"'
        ) from error
    served = ServedModels.from_argument(model, Registry(search=artifacts or None, working_folder=False))
    models = ModelHost(served, options.load, **host_options)
    run(settings, models, ready=lambda url: ready(url, served.default))
