"""Writes docs/cli.md from the commands themselves: ``python docs/generate_cli.py``. A test compares them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from gptoss_runtime.cli.main import app

PAGE = Path(__file__).with_name("cli.md")


def page() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    parts = ["# Commands", "", "Made by `python docs/generate_cli.py`. Exit codes: [runtime.md](runtime.md).", ""]
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        for one, under in getattr(command, "commands", {"": command}).items():  # "models list" is one of several
            parts += _command(f"{name} {one}".strip(), under)
    return "\n".join(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([*(_argument(p) for p in arguments), *(_usage(p) for p in options if p.required), "[OPTIONS]"])
    yield from (f"## gptoss {name}", "", f"`gptoss {name} {usage}`", "", " ".join((command.help or "").split()), "")
    yield from ("| | default | |", "|---|---|---|")
    for parameter in arguments:
        yield f"| `{_argument(parameter)}` | | {parameter.help or ''} |"
    for parameter in options:
        names = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
        default = "required" if parameter.required else _default(parameter)
        yield f"| {names} | {default} | {parameter.help or ''} |"
    yield ""


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _usage(parameter: Any) -> str:
    return f"{parameter.opts[-1]} {parameter.metavar or parameter.name.upper()}"


def _default(parameter: Any) -> str:
    unset = parameter.default is None or parameter.default is False or callable(parameter.default)
    return "" if unset else f"`{parameter.default}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
