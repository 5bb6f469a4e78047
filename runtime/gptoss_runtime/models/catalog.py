"""The catalog: which models exist, in which variants, and where each variant is published.

There is a packaged catalog, and the user can have one of the same form. The user's catalog overrides the packaged one
per variant, so that a team can point an alias to its own repositories. Knows names and addresses; knows nothing of this
machine's hardware and uses no network.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gptoss_runtime.artifact.manifest import MemoryBudget
from gptoss_runtime.artifact.safe_names import check_name, is_safe_path
from gptoss_runtime.errors import InvalidRequest

PACKAGED = "catalog.json"
ENVIRONMENT = "GPTOSS_CATALOG"
_MAX_BYTES = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")  # so that a misspelt key does not fall back to a default


class Published(_Part):
    """A variant of a model on the hub.

    Attributes:
        repository: id on the hub, "owner/name".
        revision: branch, tag or commit; a commit pins the content.
        subfolder: the artifact's folder in the repository; "" is the root.
        provider: the execution provider; None: the one that the target's name begins with.
        published: whether it has been published. gptoss never requests an unpublished repository, so that somebody else
            who registers its name first is not trusted.
        requires: version specifiers of the packages that run it.
        download: approximate download size in bytes; None: unknown.
        memory: memory needed to run; None: unknown.
    """

    repository: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)
    revision: str = Field(default="main", pattern=r"^[A-Za-z0-9][\w./-]*$", max_length=200)
    subfolder: str = ""
    provider: str | None = None
    published: bool = True
    requires: dict[str, str] = {}
    download: int | None = Field(default=None, ge=0)
    memory: MemoryBudget | None = None

    @field_validator("subfolder")
    @classmethod
    def _inside(cls, value: str) -> str:
        if value and not is_safe_path(value):
            raise ValueError("points outside the repository")
        return value


class Model(_Part):
    """A model: its description, its aliases, and its variants by target."""

    description: str = ""
    aliases: tuple[str, ...] = ()
    variants: dict[str, Published] = {}


class Catalog(_Part):
    """Models by name."""

    schema_version: Literal[1] = 1
    models: dict[str, Model] = {}

    @classmethod
    def load(cls, user: Path | None = None) -> Catalog:
        """Reads the packaged catalog and applies the user's catalog to it.

        Args:
            user: the user's file; ``None``: :func:`user_file`, which need not exist.

        Raises:
            InvalidRequest: the user's file cannot be read, or is not a valid catalog.
        """
        packaged = cls.model_validate_json(resources.files(__package__).joinpath(PACKAGED).read_bytes())
        path = user or user_file()
        if user is None and ENVIRONMENT not in os.environ and not path.exists():
            return packaged
        return packaged.override(_read(path))

    def override(self, other: Catalog) -> Catalog:
        """Returns this catalog with the entries of another one added; the other wins where both have a variant."""
        models = dict(self.models)
        for name, model in other.models.items():
            base = models.get(name, Model())
            models[name] = Model(
                description=model.description or base.description,
                aliases=tuple(dict.fromkeys((*base.aliases, *model.aliases))),
                variants=base.variants | model.variants,
            )
        return Catalog(models=models)

    def resolve_alias(self, text: str) -> str:
        """Returns the model name for a name or an alias, ignoring case; the text itself if it is unknown."""
        folded = text.casefold()
        for name, model in self.models.items():
            if folded == name.casefold() or folded in map(str.casefold, model.aliases):
                return name
        return text


def user_file() -> Path:
    """Returns the path of the user's catalog: $GPTOSS_CATALOG, or catalog.json in the user's configuration folder."""
    named = os.environ.get(ENVIRONMENT)
    return Path(named) if named else Path(platformdirs.user_config_dir("gptoss", appauthor=False)) / PACKAGED


def _read(path: Path) -> Catalog:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidRequest(
                f"{path} is larger than {_MAX_BYTES >> 20} MB", remedy="Remove what is not part of a catalog."
            )
        found = Catalog.model_validate_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        remedy = f"Create it, or unset {ENVIRONMENT}."
        raise InvalidRequest(f"the catalog {path} cannot be read: {error.strerror or error}", remedy=remedy) from error
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidRequest(f"{path}: {at}: {first['msg']}", remedy="See the example in docs/models.md.") from error
    for name, model in found.models.items():
        check_name(name, "model")
        for target in model.variants:
            check_name(target, "target")
    return found
