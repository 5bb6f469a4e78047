"""Which models a server serves, by the names that clients send: those it was started with, and the registry's.

A client names a model, never a folder: a path from a client could lead anywhere, on Windows even to another machine.
Knows names and folders; knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptoss_runtime.artifact.folder import Artifact
from gptoss_runtime.artifact.manifest import MANIFEST, Manifest
from gptoss_runtime.errors import GptOssError, ModelNotFound
from gptoss_runtime.models import Registry


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on this machine.

    Args:
        id: the name that clients use.
        path: its artifact folder.
        target: what it was converted for.
        provider: the execution provider it was converted for.
        context_length: its maximum context length in tokens, prompt and answer together.
        created: when its manifest was written here, in seconds since 1970.
        size: bytes on disk; ``None``: unknown.
    """

    id: str
    path: Path
    target: str
    provider: str
    context_length: int
    created: int
    size: int | None


class ServedModels:
    """Maps model names to artifact folders.

    Args:
        named: the folders that the server was started with, by name; the first is the default.
        registry: where other names are looked up; ``None``: nowhere.
    """

    def __init__(self, named: Mapping[str, Path] | None = None, registry: Registry | None = None) -> None:
        self._named = {name: folder.resolve() for name, folder in (named or {}).items()}
        self._registry = registry
        self.default = next(iter(self._named), None)

    @classmethod
    def from_argument(cls, model: str | None, registry: Registry) -> ServedModels:
        """The models of a server that was started with a model's name, an artifact folder, or neither.

        Raises:
            ModelNotFound: there is no such model on this machine.
            ArtifactError: its folder is damaged.
        """
        if model is None:
            return cls(registry=registry)
        artifact = Artifact.open(registry.resolve(model))
        is_name = not Path(model).exists() and model != artifact.name
        return cls({model if is_name else artifact.name: artifact.path}, registry)

    def find(self, name: str) -> ServedModel:
        """Finds a model by name; reads the disk.

        Raises:
            ModelNotFound: there is no such model, or it is not on this machine.
            ArtifactError: its folder is damaged.
        """
        folder = self._named.get(name)
        if folder is None:
            if self._registry is None:
                raise ModelNotFound(f"there is no model {name[:80]!r}", remedy="GET /v1/models lists those there are.")
            try:
                folder = self._registry.resolve(name, paths=False).resolve()
            except ModelNotFound as error:  # the registry's remedy leaves out the models this server was started with
                remedy = f"{error.remedy} GET /v1/models lists those on this machine."
                raise ModelNotFound(error.message, remedy=remedy) from error
        return _read_model(name, folder)

    def list_models(self) -> list[ServedModel]:
        """Lists the models on this machine, one per folder, without damaged ones; reads the disk."""
        names = {folder: name for name, folder in self._named.items()}
        if self._registry is not None:
            for variant in self._registry.list(here=True):
                if variant.path is not None:
                    names.setdefault(variant.path.resolve(), variant.id)
        return [model for folder, name in names.items() if (model := _read_model_if_valid(name, folder)) is not None]


def _read_model_if_valid(name: str, folder: Path) -> ServedModel | None:
    try:
        return _read_model(name, folder)
    except GptOssError:
        return None


def _read_model(name: str, folder: Path) -> ServedModel:
    artifact = Artifact.open(folder)
    manifest: Manifest | None = artifact.manifest
    dated_file = folder / (MANIFEST if manifest is not None else "genai_config.json")
    return ServedModel(
        id=name,
        path=artifact.path,
        target=artifact.target,
        provider=artifact.provider,
        context_length=artifact.context_length,
        created=int(dated_file.stat().st_mtime),
        size=None if manifest is None else sum(file.size for file in manifest.files.values()),
    )
