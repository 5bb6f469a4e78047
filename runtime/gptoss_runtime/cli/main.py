"""The ``gptoss`` command: finds commands by name, loads only the one asked for, and turns errors into exit codes.

The runtime's commands are listed here; others come from the entry-point group "gptoss.commands" as "module:function".
Knows nothing of what commands do.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from gptoss_runtime.errors import BackendUnavailable, GptOssError

GROUP = "gptoss.commands"
BUILT_IN = {
    "generate": "gptoss_runtime.cli.generate:generate",
    "chat": "gptoss_runtime.cli.chat:chat",
    "bench": "gptoss_runtime.cli.bench:bench",
    "doctor": "gptoss_runtime.cli.doctor:doctor",
    "serve": "gptoss_runtime.cli.serve:serve",
    "models": "gptoss_runtime.cli.models:models",
}
INTERRUPTED = 130


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are looked up."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Every command's name, in order."""
        return sorted({*BUILT_IN, *_extensions()})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One command; one that cannot be imported says why when it is run, and leaves the others alone."""
        target = BUILT_IN.get(cmd_name) or _extensions().get(cmd_name)
        if target is None:
            return None
        app = typer.Typer(add_completion=False)
        try:
            loaded = _load(target)
            if isinstance(loaded, typer.Typer):  # a command of several, such as "models list"
                group = typer.main.get_group(loaded)
                group.name = cmd_name
                return group
            app.command(cmd_name)(loaded)
        except Exception as error:  # an extension's import may raise anything
            anything = {"ignore_unknown_options": True, "allow_extra_args": True}
            app.command(cmd_name, context_settings=anything, add_help_option=False)(_broken(cmd_name, error))
        command = typer.main.get_command(app)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; the project's errors become a message, a remedy and an exit code."""
        try:
            return super().invoke(ctx)
        except GptOssError as error:
            typer.echo(f"error: {error.message}", err=True)
            if error.remedy is not None:
                typer.echo(error.remedy, err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    name="gptoss",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"gptoss {metadata.version('gptoss-windows')}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Convert gpt-oss for Windows GPUs, and run it."""


def main() -> NoReturn:
    """The console script."""
    make_output_safe()
    app()
    sys.exit(0)


def make_output_safe() -> None:
    """UTF-8 in and out whatever the console's code page, and a mark instead of a crash for what it cannot carry."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")


def _extensions() -> dict[str, str]:
    return {entry.name: entry.value for entry in metadata.entry_points(group=GROUP)}


def _load(target: str) -> Any:
    """A function, or a Typer of several."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _broken(name: str, error: Exception) -> Callable[..., Any]:
    def command(ctx: typer.Context) -> None:
        raise BackendUnavailable(
            f"the command {name} cannot be loaded: {type(error).__name__}: {error}",
            remedy='Install what it needs: pip install "gptoss-windows[convert]".',
        ) from error

    command.__doc__ = "(not installed)"
    return command


if __name__ == "__main__":
    main()
