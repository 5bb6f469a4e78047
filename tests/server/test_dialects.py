"""The server's folders: dialects translate to and from a shared core. None imports another; the core imports none."""

from __future__ import annotations

import ast
from pathlib import Path

import gptoss_runtime.server

SERVER = Path(gptoss_runtime.server.__file__).parent
PACKAGE = "gptoss_runtime.server"
SHARED = {"openai": {"chat_completions", "responses", "app.py"}}  # what several dialects share, and who may import it
FOLDERS = {folder.name for folder in SERVER.iterdir() if (folder / "__init__.py").exists()}


def imported_folders(path: Path) -> set[str]:
    """The server's folders that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith(f"{PACKAGE}."):
                found.add(name.removeprefix(f"{PACKAGE}.").partition(".")[0])
    return found & FOLDERS


def test_dialects_import_the_core_only() -> None:
    assert {"chat_completions", "responses", "foundry", "openai"} < FOLDERS
    for path in SERVER.rglob("*.py"):
        place = path.relative_to(SERVER).parts[0]  # a folder, or a module of the core
        for folder in imported_folders(path) - {place}:
            allowed = SHARED.get(folder, {"app.py"})
            assert place in allowed, f"{path.relative_to(SERVER)} imports {folder}"
