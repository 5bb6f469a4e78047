"""Files of an artifact folder that other programs may run or act on, though gptoss does not; for ``gptoss inspect``.

Looks at names and at the keys of JSON files; declares nothing safe. Knows the files that onnxruntime-genai, Foundry
Local and transformers read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptoss_runtime.artifact import strict_json
from gptoss_runtime.artifact.manifest import MANIFEST, Manifest
from gptoss_runtime.models.pulling import RECORD

_PROGRAMS = frozenset(
    {
        *(".dll", ".so", ".dylib", ".exe", ".com", ".scr", ".msi", ".lnk", ".bat", ".cmd", ".ps1", ".vbs", ".js"),
        *(".sh", ".py", ".pyc", ".pyd", ".jar"),
    }
)
_PICKLES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"})
_TEMPLATES = frozenset({".jinja", ".jinja2"})
_RENDERED = "a template: onnxruntime-genai's tokenizer, Foundry Local and transformers render it, gptoss does not"


def find_risks(folder: Path, manifest: Manifest | None) -> list[str]:
    """Lists the files of a folder that other programs may act on, a sentence each.

    Args:
        folder: an artifact folder whose configuration and graphs were checked.
        manifest: its manifest, if it has one.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    listed = None if manifest is None else {MANIFEST, RECORD, *manifest.files}
    found: list[str] = []
    for name in names:
        found += (f"{name}: {what}" for what in _file_risks(folder / name))
        if listed is not None and name not in listed:
            found.append(f"{name}: not in the manifest, so not checked against it")
    return found


def _file_risks(path: Path) -> Iterator[str]:
    suffixes = {suffix.lower() for suffix in path.suffixes}  # libx.so.1 is a library too
    if suffixes & _PROGRAMS:
        yield "a program or a library: other programs may run it, gptoss does not"
    if suffixes & _PICKLES:
        yield "perhaps a pickle: Python runs what such a file says, gptoss does not read it"
    if suffixes & _TEMPLATES:
        yield _RENDERED
    if path.suffix.lower() == ".json" and path.name != MANIFEST:
        keys = _keys(strict_json.parse_value(strict_json.read_bytes(path), path))
        if "chat_template" in keys:
            yield _RENDERED
        if "auto_map" in keys:
            yield "auto_map: transformers runs the Python that it names, if it is told to trust it; gptoss does not"


def _keys(value: Any) -> set[str]:
    """Keys of the outermost object; programs look for them there."""
    return set(value) if isinstance(value, dict) else set()
