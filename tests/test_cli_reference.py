"""The command reference is up to date, and the pages use commands and options that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import typer

from gptoss_runtime.cli.main import app

ROOT = Path(__file__).parents[1]


def test_the_command_reference_is_what_the_commands_say() -> None:
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == generator.page(), "run: python docs/generate_cli.py"


def test_commands_in_the_pages_exist() -> None:
    group: Any = typer.main.get_command(app)
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), ROOT / "artifacts/README.md"]
    found = 0
    for page in pages:
        if page.name == "cli.md":
            continue
        text = page.read_text(encoding="utf-8")
        blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
        lines = re.findall(r"^(?:> )?gptoss (.*)$", blocks, re.MULTILINE) + re.findall(r"`gptoss ([^`]+)`", text)
        for line in lines:
            words = line.split("#")[0].split()
            if not words or not re.fullmatch("[a-z]+", words[0]):
                continue
            command = group.get_command(None, words[0])
            assert command is not None, f"{page.name}: gptoss {' '.join(words)}"
            if hasattr(command, "commands") and len(words) > 1 and words[1] in command.commands:
                command = command.commands[words[1]]
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            options = {word.strip("[].,").split("=")[0] for word in words if word.strip("[").startswith("-")}
            assert options <= {*known, "--help"}, f"{page.name}: gptoss {' '.join(words)}"
            found += 1
    assert found > 60
