"""Generated pages are up to date. Lint, formats and types are checked by .ci/run and pre-commit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_command_reference_is_what_the_commands_say() -> None:
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    written = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == generator.page(), "run: python docs/generate_cli.py"
