"""A small artifact for the hub of hub_server.py, and registries and processes that pull it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gptoss_runtime.artifact.manifest import MANIFEST, FileEntry, Manifest, MemoryBudget, Source
from gptoss_runtime.models import Catalog, Hub, Model, Published, Registry
from tests.runtime.models.hub_server import HubServer

NAME = "small"
WEIGHTS = "model.onnx.data"


def write_manifest(folder: Path) -> None:
    found = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    names = [name for name in found if name != MANIFEST]
    manifest = Manifest(
        name=NAME,
        target="cpu",
        preset="balanced",
        logits="last",
        requires={},
        source=Source(name=NAME, revision=None, files={}),
        groups={},
        memory=MemoryBudget(weights=1, kv_per_token=1, context=4096, peak=5000),
        tools={},
        files={name: FileEntry.from_file(folder / name) for name in names},
    )
    (folder / MANIFEST).write_bytes(manifest.to_bytes())


def registry(hub: HubServer, cache: Path, *, subfolder: str = "cpu", revision: str = "main") -> Registry:
    source = Published(repository="someone/small", subfolder=subfolder, revision=revision)
    unknown = Published(repository="nobody/knows", subfolder=subfolder)
    catalog = Catalog(
        models={
            NAME: Model(aliases=("tiny",), variants={"cpu": source}),
            "unknown": Model(variants={"cpu": unknown}),
        }
    )
    return Registry(cache, search=[], catalog=catalog, hub=Hub(hub.endpoint))


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def command(hub: HubServer, cache: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts ``gptoss models`` in a process."""
    catalog = cache / "mine.json"
    models = registry(hub, cache).catalog
    catalog.write_text(models.model_dump_json(exclude_none=True), encoding="utf-8")
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "GPTOSS_CACHE": str(cache),
        "GPTOSS_CATALOG": str(catalog),
        "GPTOSS_ARTIFACTS": str(cache / "none"),
    }
    line = [sys.executable, "-W", "error", "-m", "gptoss_runtime.cli.main", "models", *arguments]
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
