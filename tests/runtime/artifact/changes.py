"""Changes to a copy of an artifact, for tests that load it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptoss_runtime import GenerationOptions

GREEDY = GenerationOptions(temperature=0, max_new_tokens=4, stop_token_ids=())
PROMPT = [200006, 1428, 200008, 24912, 200007, 200006, 173781]
CONFIG = "genai_config.json"


def link(artifact: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in artifact.iterdir():
        os.link(path, folder / path.name)
    return folder


def replace(path: Path, content: bytes | str) -> None:
    """Replaces a file with another one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def configure(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    change(config)
    replace(folder / CONFIG, json.dumps(config))


def session(folder: Path, key: str, value: object) -> None:
    configure(folder, lambda config: config["model"]["decoder"]["session_options"].update({key: value}))
