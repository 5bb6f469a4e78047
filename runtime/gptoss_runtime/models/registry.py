"""Models by name: lists what the catalog and this machine have, resolves names to folders, pulls and removes variants.

The command line and the server use only this module. It knows the folder layout and the search order; choosing.py
chooses by hardware, pulling.py downloads.

A variant is named by a model's name or an alias, with or without ``:target``. On this machine it is a folder
``<name>/<target>/`` in one of the search folders, which come first, or in the cache.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from gptoss_runtime.artifact.folder import CONFIG
from gptoss_runtime.artifact.manifest import MANIFEST, Manifest, MemoryBudget
from gptoss_runtime.artifact.safe_names import is_name
from gptoss_runtime.errors import ArtifactError, InvalidRequest, ModelNotFound
from gptoss_runtime.models.catalog import Catalog, Published
from gptoss_runtime.models.choosing import Choice, choose
from gptoss_runtime.models.hub import Hub
from gptoss_runtime.models.pulling import OnProgress, Progress, Record, in_use_error, lock_folder, pull, staging_folder
from gptoss_runtime.providers import default_provider

CACHE = "GPTOSS_CACHE"
SEARCH = "GPTOSS_ARTIFACTS"
_WORKING_FOLDER_SEARCH = Path("artifacts")
_NOT_SEARCHED = (
    "A server does not search the working folder. If you trust its contents, pass --artifacts artifacts "
    '(in Python: artifacts="artifacts").'
)
_LIST = "Run: gptoss models list"


@dataclass(frozen=True, slots=True)
class Variant:
    """A model converted for one target.

    Attributes:
        model: the model's name.
        target: the target it was converted for.
        provider: the execution provider it was converted for.
        path: its folder on this machine; None: it is not on this machine.
        where: "cache" if it was pulled, "folder" if it is in a search folder.
        published: its location on the hub, or None.
        requires: version specifiers of the packages that run it.
        memory: memory needed to run; None: unknown.
        size: bytes on disk, or of the download; None: unknown.
        pulled: the source it was pulled from, or None.
        problem: why its folder cannot be used, or None.
    """

    model: str
    target: str
    provider: str
    path: Path | None
    where: Literal["cache", "folder"] | None
    published: Published | None
    requires: Mapping[str, str]
    memory: MemoryBudget | None
    size: int | None
    pulled: Record | None = None
    problem: str | None = None

    @property
    def id(self) -> str:
        """The unambiguous name: "name:target"."""
        return f"{self.model}:{self.target}"


class Registry:
    """The models on this machine and in the catalog.

    Args:
        cache: the folder of pulled models; ``None``: $GPTOSS_CACHE, or the user's cache folder.
        search: folders that contain converted artifacts as ``<name>/<target>/``; ``None``: $GPTOSS_ARTIFACTS (a list
            separated as in PATH), or ``artifacts`` in the working folder.
        working_folder: whether to use the working folder: its ``artifacts``, and a folder in it that is named without a
            separator. False for servers, which serve other users and can be started in any folder.
        catalog: the models that exist; ``None``: the packaged catalog and the user's.
        hub: the hub to pull from; ``None``: Hugging Face, or ``HF_ENDPOINT``.
    """

    def __init__(
        self,
        cache: Path | None = None,
        *,
        search: Sequence[Path] | None = None,
        catalog: Catalog | None = None,
        hub: Hub | None = None,
        working_folder: bool = True,
    ) -> None:
        self.cache = cache or _default_cache()
        self.search = tuple(search) if search is not None else _default_search(working_folder)
        self._working_folder = working_folder
        self.catalog = catalog or Catalog.load()
        self._hub = hub or Hub()

    def list(self, *, here: bool = False) -> tuple[Variant, ...]:
        """Lists all variants, sorted by name and target.

        Args:
            here: only usable variants on this machine.
        """
        names = {*self.catalog.models}
        for root in self._roots():
            names.update(path.name for path in _folders(root))
        variants = [variant for name in sorted(names) for variant in self._variants(name)]
        return tuple(one for one in variants if not here or (one.path is not None and one.problem is None))

    def resolve(self, name: str, *, paths: bool = True) -> Path:
        """Returns the artifact folder for a name on this machine; uses no network.

        Args:
            name: a model, an alias, "name:target", or a path to an artifact folder.
            paths: whether a path is allowed; a server passes False for names from clients.

        Raises:
            ModelNotFound: there is no such model, or it is not on this machine.
            ArtifactError: its folder is damaged, or the path is not a folder.
            GptOssError: the model has several variants here, and none of them runs.
        """
        if paths and is_path(name):
            return _require_folder(Path(name))
        try:
            found = self.choose(name).variant.path
        except ModelNotFound:
            if paths and self._working_folder and Path(name).is_dir():
                return _require_folder(Path(name))
            raise
        assert found is not None
        return found

    def choose(self, name: str, *, device: int | str | None = None) -> Choice[Variant]:
        """Chooses a variant on this machine and the device to run it on.

        Args:
            name: a model, an alias, or "name:target".
            device: run on this adapter.

        Raises:
            ModelNotFound: there is no such model, or it is not on this machine.
            ArtifactError: its folder is damaged.
            GptOssError: there are several variants here, and none of them runs. A single variant, or one named with its
                target, is returned even if it does not run, with the reason.
        """
        model, target = self._split(name)
        variants = [one for one in self._find_variants(model) if one.path is not None]
        matches = [one for one in variants if target in (None, one.target)]
        if not matches:
            what = model if target is None else f"{model}:{target}"
            raise ModelNotFound(f"{what} is not on this machine", remedy=self._install_remedy(model, target))
        usable = [one for one in matches if one.problem is None]
        if not usable:
            raise ArtifactError(f"{matches[0].path}: {matches[0].problem}", remedy="Pull or convert it again.")
        if target is None and len(usable) == 1:
            target = usable[0].target
        return choose(model, usable, target=target, device=device)

    def info(self, name: str) -> tuple[Variant, ...]:
        """Returns the variants of a model, or the one that "name:target" names.

        Raises:
            ModelNotFound: there is no such model or variant.
        """
        model, target = self._split(name)
        matches = tuple(one for one in self._find_variants(model) if target in (None, one.target))
        if not matches:
            available = ", ".join(one.target for one in self._find_variants(model))
            raise ModelNotFound(f"{model} has no variant for {target!r}", remedy=f"Available variants: {available}.")
        return matches

    def pull(self, alias: str, target: str | None = None, progress: OnProgress | None = None) -> Variant:
        """Downloads a variant into the cache or resumes its download; does nothing if the cache is up to date.

        Args:
            alias: a model or an alias, with or without ":target".
            target: which variant; ``None``: the one that runs best here.
            progress: called with the progress; an exception from it stops the pull.

        Raises:
            ModelNotFound: there is no such model, or it has not been published.
            HubError: the hub cannot be reached, or does not have it.
            ArtifactError: the artifact on the hub is damaged or unsafe.
            ResourceError: no variant fits this machine's memory or disk.
            BackendUnavailable: no variant runs here, or huggingface_hub is not installed.
        """
        model, named = self._split(alias)
        if target is not None and named not in (None, target):
            raise InvalidRequest(f"{alias!r} and target {target!r} contradict each other", remedy="Name one target.")
        candidates = [one for one in self._find_variants(model) if one.published is not None]
        if not candidates:
            raise ModelNotFound(f"the catalog names no repository for {model}", remedy=_LIST)
        chosen = choose(model, candidates, target=target or named).variant
        assert chosen.published is not None
        if not chosen.published.published:
            raise ModelNotFound(f"{chosen.id} has not been published yet", remedy=_convert_remedy(chosen))
        pull(chosen.published, self._cache_folder(model, chosen.target), self._hub, progress or _ignore_progress)
        return next(one for one in self._variants(model, [self.cache]) if one.target == chosen.target)

    def remove(self, name: str) -> Path:
        """Deletes a pulled variant, or the files of an interrupted pull.

        Args:
            name: "name:target"; or a model or an alias if only one of its variants was pulled.

        Returns:
            The deleted folder.

        Raises:
            InvalidRequest: it is not in the cache, or several variants match.
            ModelNotFound: there is no such model.
            ResourceError: it is being pulled, or in use.
        """
        if is_path(name):
            raise InvalidRequest(
                f"{name[:200]!r} is a path",
                remedy="gptoss deletes only models that it pulled. Delete other folders yourself.",
            )
        model, target = self._split(name)
        self._find_variants(model)
        pulled = [path.name for path in _folders(self.cache / model)] if is_name(model) else []
        partial = [path.name[1:-8] for path in _children(self.cache / model) if path.name.endswith(".partial")]
        matches = sorted({one for one in (*pulled, *partial) if target in (None, one)})
        if len(matches) != 1:
            remedy = f"Name one: {', '.join(f'{model}:{one}' for one in matches)}."
            if matches:
                raise InvalidRequest(f"several variants of {model} were pulled", remedy=remedy)
            raise InvalidRequest(
                f"{name} is not in the cache",
                remedy="gptoss deletes only models that it pulled. Delete other folders yourself.",
            )
        folder = self._cache_folder(model, matches[0])
        with lock_folder(folder):
            _delete(folder)
        return folder

    def _variants(self, model: str, roots: Sequence[Path] | None = None) -> tuple[Variant, ...]:
        """Returns the variants sorted by target; if several roots have a target, the first root wins."""
        found: dict[str, Variant] = {}
        entry = self.catalog.models.get(model)
        published = entry.variants if entry else {}
        for root in self._roots() if roots is None else roots:
            for folder in _folders(root / model):
                if _is_artifact(folder) and folder.name not in found:
                    where: Literal["cache", "folder"] = "cache" if root == self.cache else "folder"
                    found[folder.name] = _read_variant(model, folder, where, published.get(folder.name))
        for target, one in published.items() if roots is None else ():
            if target not in found:
                provider = one.provider or default_provider(target)
                found[target] = Variant(
                    model, target, provider, None, None, one, one.requires, one.memory, one.download
                )
        return tuple(found[target] for target in sorted(found))

    def _find_variants(self, model: str) -> tuple[Variant, ...]:
        variants = self._variants(model) if is_name(model) else ()
        if not variants:
            names = sorted({one.model for one in self.list()})
            remedy = _NOT_SEARCHED if self._is_in_working_folder(model) else f"Available models: {', '.join(names)}."
            raise ModelNotFound(f"there is no model {model[:100]!r}", remedy=remedy)
        return variants

    def _is_in_working_folder(self, model: str) -> bool:
        """Whether the model is in the working folder of a server, which does not search there."""
        return not self._working_folder and is_name(model) and bool(_folders(_WORKING_FOLDER_SEARCH / model))

    def _split(self, name: str) -> tuple[str, str | None]:
        model, _, target = name.partition(":")
        return self.catalog.resolve_alias(model), target or None

    def _roots(self) -> tuple[Path, ...]:
        return (*self.search, self.cache)

    def _cache_folder(self, model: str, target: str) -> Path:
        return self.cache / model / target

    def _install_remedy(self, model: str, target: str | None) -> str:
        if self._is_in_working_folder(model):
            return _NOT_SEARCHED
        variants = [one for one in self._find_variants(model) if target in (None, one.target)]
        if not variants:
            return _LIST
        if all(one.published is None or not one.published.published for one in variants):
            return _convert_remedy(variants[0])
        return f"Run: gptoss models pull {model}" + (f" --target {target}" if target else "")


def _read_variant(model: str, folder: Path, where: Literal["cache", "folder"], published: Published | None) -> Variant:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    manifest, problem = None, None
    try:
        manifest = Manifest.read(folder) if (folder / MANIFEST).exists() else None
    except ArtifactError as error:
        problem = error.message
    return Variant(
        model,
        folder.name,
        (manifest.provider if manifest else None) or default_provider(folder.name),
        folder,
        where,
        published,
        requires=manifest.requires if manifest else {},
        memory=manifest.memory if manifest else None,
        size=size,
        pulled=Record.read(folder) if where == "cache" else None,
        problem=problem,
    )


def _convert_remedy(variant: Variant) -> str:
    if variant.model == "gptoss-nano":
        return "Run gptoss demo, which creates it in artifacts/gptoss-nano/cpu."
    return (
        f"Convert the checkpoint: gptoss convert openai--{variant.model} --target {variant.target} "
        f"-o artifacts/{variant.model}/{variant.target}\n"
        "Or name a repository that has it in your own catalog (docs/models.md)."
    )


def is_path(name: str) -> bool:
    """Whether this is a path and not a model's name, which has no separator."""
    return "/" in name or "\\" in name or name in (".", "..")


def _require_folder(path: Path) -> Path:
    if not path.is_dir():
        problem = "is not a folder" if path.exists() else "does not exist"
        raise ArtifactError(
            f"{path} {problem}", remedy="Name an artifact folder, or a model that gptoss models list shows."
        )
    return path.resolve()


def _folders(root: Path) -> list[Path]:
    return [path for path in _children(root) if path.is_dir() and is_name(path.name)]


def _children(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())
    except OSError:
        return []


def _is_artifact(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / MANIFEST).is_file()


def _delete(folder: Path) -> None:
    """Renames the folder before deleting it, so that a partly deleted folder is never listed."""
    for path in (folder, staging_folder(folder)):
        if not path.exists():
            continue
        deleted = path.with_name(f"{staging_folder(path).name}.gone")
        shutil.rmtree(deleted, ignore_errors=True)
        try:
            path.rename(deleted)
        except PermissionError as error:
            raise in_use_error(path) from error
        shutil.rmtree(deleted, ignore_errors=True)


def _default_cache() -> Path:
    named = os.environ.get(CACHE)
    return Path(named) if named else Path(platformdirs.user_cache_dir("gptoss", appauthor=False)) / "models"


def _default_search(working_folder: bool) -> tuple[Path, ...]:
    named = os.environ.get(SEARCH)
    if named:
        return tuple(map(Path, named.split(os.pathsep)))
    return (_WORKING_FOLDER_SEARCH,) if working_folder else ()


def _ignore_progress(progress: Progress) -> None:
    pass
