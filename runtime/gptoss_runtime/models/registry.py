"""Models by name: what the catalogue has, what is on this machine, and how one gets from there to here.

The one door for the command line and the server. Knows folders' names and the order in which they are looked at; the
choice by hardware is choosing.py's, the download pulling.py's.

A model's name, an alias, or one of them with ``:target`` behind it means a variant. On this machine a variant is a
folder ``<name>/<target>/`` in the cache, or in one of the search folders, which are looked at first.
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
from gptoss_runtime.models.catalogue import Catalogue, Published
from gptoss_runtime.models.choosing import Choice, choose
from gptoss_runtime.models.hub import Hub
from gptoss_runtime.models.pulling import OnProgress, Progress, Record, in_use, locked, pull, staging

CACHE = "GPTOSS_CACHE"
SEARCH = "GPTOSS_ARTIFACTS"
_IN_WORKING_FOLDER = Path("artifacts")
_PASSED_OVER = (
    "A server does not look in the working folder. If you trust what is there: --artifacts artifacts "
    '(in Python: artifacts="artifacts")'
)
_LIST = "See: gptoss models list"


@dataclass(frozen=True, slots=True)
class Variant:
    """A model made for one target.

    Attributes:
        model: the model's name.
        target: what it was converted for.
        path: its folder on this machine; None: it is not here.
        where: "cache" if it was pulled, "folder" if a search folder has it.
        published: where the hub has it, or None.
        requires: packages that run it, with version specifiers.
        memory: what it takes to run; None: unknown.
        size: bytes on disk, or of the download; None: unknown.
        pulled: where it was pulled from.
        problem: why what lies there cannot be used.
    """

    model: str
    target: str
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
        """The name that means exactly this one: "name:target"."""
        return f"{self.model}:{self.target}"


class Registry:
    """The models that this user has and can have.

    Args:
        cache: where pulled models lie; ``None``: $GPTOSS_CACHE, or the user's cache folder.
        search: folders with ``<name>/<target>/`` that conversions made; ``None``: $GPTOSS_ARTIFACTS (several: as in
            PATH), or ``artifacts`` in the working folder.
        working_folder: whether the working folder counts: its ``artifacts``, and a folder in it that is named without a
            separator. False for servers, which run for others and may be started anywhere.
        catalogue: which models there are; ``None``: the packaged one and the user's.
        hub: where to pull from; ``None``: Hugging Face, or what ``HF_ENDPOINT`` names.
    """

    def __init__(
        self,
        cache: Path | None = None,
        *,
        search: Sequence[Path] | None = None,
        catalogue: Catalogue | None = None,
        hub: Hub | None = None,
        working_folder: bool = True,
    ) -> None:
        self.cache = cache or _default_cache()
        self.search = tuple(search) if search is not None else _default_search(working_folder)
        self._working_folder = working_folder
        self.catalogue = catalogue or Catalogue.load()
        self._hub = hub or Hub()

    def list(self, *, here: bool = False) -> tuple[Variant, ...]:
        """All variants, by name and target.

        Args:
            here: only those on this machine that can be used.
        """
        names = {*self.catalogue.models}
        for root in self._roots():
            names.update(path.name for path in _folders(root))
        variants = [variant for name in sorted(names) for variant in self._variants(name)]
        return tuple(one for one in variants if not here or (one.path is not None and one.problem is None))

    def resolve(self, name: str, *, paths: bool = True) -> Path:
        """The artifact folder that a name means on this machine; asks no network.

        Args:
            name: a model, an alias, "name:target", or a path to an artifact folder.
            paths: whether a path is allowed. A server passes False for what clients send.

        Raises:
            ModelNotFound: there is none of that name, or it is not on this machine.
            ArtifactError: it is here and damaged; or the path is no folder.
            GptOssError: of a model with several variants here, none runs.
        """
        if paths and is_path(name):
            return _artifact_folder(Path(name))
        try:
            found = self.choose(name).variant.path
        except ModelNotFound:
            if paths and self._working_folder and Path(name).is_dir():
                return _artifact_folder(Path(name))
            raise
        assert found is not None
        return found

    def choose(self, name: str, *, device: int | str | None = None) -> Choice[Variant]:
        """Which variant that is on this machine to use, where to run it, and why.

        Args:
            name: a model, an alias, or "name:target".
            device: run on this adapter.

        Raises:
            ModelNotFound: there is none of that name, or it is not on this machine.
            ArtifactError: it is here and damaged.
            GptOssError: of several variants here, none runs. A single one, or one named with its target, is returned
                all the same, with the reason why it would not.
        """
        model, target = self._split(name)
        variants = [one for one in self._known(model) if one.path is not None]
        meant = [one for one in variants if target in (None, one.target)]
        if not meant:
            what = model if target is None else f"{model}:{target}"
            raise ModelNotFound(f"{what} is not on this machine", remedy=self._how_to_get(model, target))
        whole = [one for one in meant if one.problem is None]
        if not whole:
            raise ArtifactError(f"{meant[0].path}: {meant[0].problem}", remedy="Pull or convert it again.")
        if target is None and len(whole) == 1:
            target = whole[0].target
        return choose(model, whole, target=target, device=device)

    def info(self, name: str) -> tuple[Variant, ...]:
        """The variants of a model, or the one that "name:target" means.

        Raises:
            ModelNotFound: there is none of that name.
        """
        model, target = self._split(name)
        meant = tuple(one for one in self._known(model) if target in (None, one.target))
        if not meant:
            there = ", ".join(one.target for one in self._known(model))
            raise ModelNotFound(f"{model} has no variant for {target!r}", remedy=f"Those it has: {there}.")
        return meant

    def pull(self, alias: str, target: str | None = None, progress: OnProgress | None = None) -> Variant:
        """Downloads a variant into the cache, or goes on with that; does nothing where the cache has what the hub has.

        Args:
            alias: a model or an alias, or one with ":target".
            target: which variant; ``None``: the one that runs best here.
            progress: told how far it is; what it raises ends the pull.

        Raises:
            ModelNotFound: there is none of that name, or it has not been published.
            HubError: the hub cannot be reached, or does not have it.
            ArtifactError: what the hub has is damaged or unsafe.
            ResourceError: no variant fits this machine's memory, or its disk.
            BackendUnavailable: no variant runs here, or huggingface_hub is not installed.
        """
        model, named = self._split(alias)
        if target is not None and named not in (None, target):
            raise InvalidRequest(f"{alias!r} and target {target!r} contradict each other", remedy="Name one target.")
        candidates = [one for one in self._known(model) if one.published is not None]
        if not candidates:
            raise ModelNotFound(f"the catalogue does not say where {model} is published", remedy=_LIST)
        chosen = choose(model, candidates, target=target or named).variant
        assert chosen.published is not None
        if not chosen.published.published:
            raise ModelNotFound(f"{chosen.id} has not been published yet", remedy=_unpublished(chosen))
        pull(chosen.published, self._in_cache(model, chosen.target), self._hub, progress or _silent)
        return next(one for one in self._variants(model, [self.cache]) if one.target == chosen.target)

    def remove(self, name: str) -> Path:
        """Deletes a pulled variant, or what an interrupted pull of it left.

        Args:
            name: "name:target"; or a model or an alias, if one variant of it was pulled.

        Returns:
            The folder that is gone.

        Raises:
            InvalidRequest: it is not in the cache, so not ours to delete; or several are meant.
            ModelNotFound: there is none of that name.
            ResourceError: it is being pulled, or in use.
        """
        if is_path(name):
            raise InvalidRequest(
                f"{name[:200]!r} is a path", remedy="gptoss deletes only what it pulled: delete the folder yourself."
            )
        model, target = self._split(name)
        self._known(model)
        pulled = [path.name for path in _folders(self.cache / model)] if is_name(model) else []
        partial = [path.name[1:-8] for path in _children(self.cache / model) if path.name.endswith(".partial")]
        meant = sorted({one for one in (*pulled, *partial) if target in (None, one)})
        if len(meant) != 1:
            remedy = f"Name one: {', '.join(f'{model}:{one}' for one in meant)}."
            if meant:
                raise InvalidRequest(f"several variants of {model} were pulled", remedy=remedy)
            raise InvalidRequest(
                f"{name} is not in the cache", remedy="gptoss deletes only what it pulled: other folders are yours."
            )
        folder = self._in_cache(model, meant[0])
        with locked(folder):
            _delete(folder)
        return folder

    def _variants(self, model: str, roots: Sequence[Path] | None = None) -> tuple[Variant, ...]:
        """By target; of one target that several roots have, the first root's."""
        found: dict[str, Variant] = {}
        catalogued = self.catalogue.models.get(model)
        published = catalogued.variants if catalogued else {}
        for root in self._roots() if roots is None else roots:
            for folder in _folders(root / model):
                if _looks_like_one(folder) and folder.name not in found:
                    where: Literal["cache", "folder"] = "cache" if root == self.cache else "folder"
                    found[folder.name] = _here(model, folder, where, published.get(folder.name))
        for target, one in published.items() if roots is None else ():
            if target not in found:
                found[target] = Variant(model, target, None, None, one, one.requires, one.memory, one.download)
        return tuple(found[target] for target in sorted(found))

    def _known(self, model: str) -> tuple[Variant, ...]:
        variants = self._variants(model) if is_name(model) else ()
        if not variants:
            names = sorted({one.model for one in self.list()})
            remedy = _PASSED_OVER if self._is_passed_over(model) else f"Those there are: {', '.join(names)}."
            raise ModelNotFound(f"there is no model {model[:100]!r}", remedy=remedy)
        return variants

    def _is_passed_over(self, model: str) -> bool:
        """Whether only the working folder has it, in which a server does not look."""
        return not self._working_folder and is_name(model) and bool(_folders(_IN_WORKING_FOLDER / model))

    def _split(self, name: str) -> tuple[str, str | None]:
        model, _, target = name.partition(":")
        return self.catalogue.name_of(model), target or None

    def _roots(self) -> tuple[Path, ...]:
        return (*self.search, self.cache)

    def _in_cache(self, model: str, target: str) -> Path:
        return self.cache / model / target

    def _how_to_get(self, model: str, target: str | None) -> str:
        if self._is_passed_over(model):
            return _PASSED_OVER
        variants = [one for one in self._known(model) if target in (None, one.target)]
        if not variants:
            return _LIST
        if all(one.published is None or not one.published.published for one in variants):
            return _unpublished(variants[0])
        return f"gptoss models pull {model}" + (f" --target {target}" if target else "")


def _here(model: str, folder: Path, where: Literal["cache", "folder"], published: Published | None) -> Variant:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    manifest, problem = None, None
    try:
        manifest = Manifest.read(folder) if (folder / MANIFEST).exists() else None
    except ArtifactError as error:
        problem = error.message
    return Variant(
        model,
        folder.name,
        folder,
        where,
        published,
        requires=manifest.requires if manifest else {},
        memory=manifest.memory if manifest else None,
        size=size,
        pulled=Record.read(folder) if where == "cache" else None,
        problem=problem,
    )


def _unpublished(variant: Variant) -> str:
    if variant.model == "gptoss-nano":
        return "Make it here: gptoss demo puts it into artifacts/gptoss-nano/cpu."
    return (
        f"Convert the checkpoint: gptoss convert openai--{variant.model} --target {variant.target} "
        f"-o artifacts/{variant.model}/{variant.target}\n"
        "Or name a repository that has it in a catalogue of your own (docs/models.md)."
    )


def is_path(name: str) -> bool:
    """Whether this can only be a path: no model's name has a separator."""
    return "/" in name or "\\" in name or name in (".", "..")


def _artifact_folder(path: Path) -> Path:
    if not path.is_dir():
        why = "is not a folder" if path.exists() else "does not exist"
        raise ArtifactError(f"{path} {why}", remedy="Name an artifact folder, or a model: gptoss models list")
    return path.resolve()


def _folders(root: Path) -> list[Path]:
    return [path for path in _children(root) if path.is_dir() and is_name(path.name)]


def _children(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())
    except OSError:
        return []


def _looks_like_one(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / MANIFEST).is_file()


def _delete(folder: Path) -> None:
    """Out of sight first, so that nothing half deleted looks whole."""
    for path in (folder, staging(folder)):
        if not path.exists():
            continue
        gone = path.with_name(f"{staging(path).name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        try:
            path.rename(gone)
        except PermissionError as error:
            raise in_use(path) from error
        shutil.rmtree(gone, ignore_errors=True)


def _default_cache() -> Path:
    named = os.environ.get(CACHE)
    return Path(named) if named else Path(platformdirs.user_cache_dir("gptoss", appauthor=False)) / "models"


def _default_search(working_folder: bool) -> tuple[Path, ...]:
    named = os.environ.get(SEARCH)
    if named:
        return tuple(map(Path, named.split(os.pathsep)))
    return (_IN_WORKING_FOLDER,) if working_folder else ()


def _silent(progress: Progress) -> None:
    """Tells nobody."""
