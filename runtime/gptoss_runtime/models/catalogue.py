"""Which models there are, in which variants, and where each is published: the packaged catalogue and the user's own.

Knows names and addresses; knows nothing of this machine's hardware, and asks no network. A user's catalogue has the
packaged one's form and is laid over it variant by variant: a team can point an alias to repositories of its own.
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

PACKAGED = "catalogue.json"
ENVIRONMENT = "GPTOSS_CATALOGUE"
_MAX_BYTES = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")  # a misspelt key must not pass for a default


class Published(_Part):
    """A variant of a model on the hub.

    Attributes:
        repository: id on the hub, "owner/name".
        revision: branch, tag or commit; a commit pins the content.
        subfolder: of the repository, where the artifact lies; "" is its root.
        published: whether it is there. Those of the packaged catalogue that are not yet are never asked for, so that
            nobody who takes the name first is trusted.
        requires: packages that run it, with version specifiers.
        download: bytes to fetch, about; None: unknown.
        memory: what it takes to run; None: unknown.
    """

    repository: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$", max_length=200)
    revision: str = Field(default="main", pattern=r"^[A-Za-z0-9][\w./-]*$", max_length=200)
    subfolder: str = ""
    published: bool = True
    requires: dict[str, str] = {}
    download: int | None = Field(default=None, ge=0)
    memory: MemoryBudget | None = None

    @field_validator("subfolder")
    @classmethod
    def _inside(cls, value: str) -> str:
        if value and not is_safe_path(value):
            raise ValueError("leads out of the repository")
        return value


class Model(_Part):
    """A model: what it is, other names of it, and its variants by target."""

    description: str = ""
    aliases: tuple[str, ...] = ()
    variants: dict[str, Published] = {}


class Catalogue(_Part):
    """Models by name."""

    schema_version: Literal[1] = 1
    models: dict[str, Model] = {}

    @classmethod
    def load(cls, user: Path | None = None) -> Catalogue:
        """The packaged catalogue with the user's laid over it.

        Args:
            user: the user's file; ``None``: :func:`user_file`, where there may be none.

        Raises:
            InvalidRequest: the user's file cannot be read, or is no catalogue.
        """
        packaged = cls.model_validate_json(resources.files(__package__).joinpath(PACKAGED).read_bytes())
        path = user or user_file()
        if user is None and ENVIRONMENT not in os.environ and not path.exists():
            return packaged
        return packaged.under(_read(path))

    def under(self, other: Catalogue) -> Catalogue:
        """This one where the other says nothing."""
        models = dict(self.models)
        for name, model in other.models.items():
            below = models.get(name, Model())
            models[name] = Model(
                description=model.description or below.description,
                aliases=tuple(dict.fromkeys((*below.aliases, *model.aliases))),
                variants=below.variants | model.variants,
            )
        return Catalogue(models=models)

    def name_of(self, text: str) -> str:
        """The model that a name or an alias means; the text itself where none does. Case does not matter."""
        folded = text.casefold()
        for name, model in self.models.items():
            if folded == name.casefold() or folded in map(str.casefold, model.aliases):
                return name
        return text


def user_file() -> Path:
    """Where the user's catalogue is looked for: $GPTOSS_CATALOGUE, or catalogue.json in the configuration folder."""
    named = os.environ.get(ENVIRONMENT)
    return Path(named) if named else Path(platformdirs.user_config_dir("gptoss", appauthor=False)) / PACKAGED


def _read(path: Path) -> Catalogue:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidRequest(f"{path} is larger than {_MAX_BYTES >> 20} MB", remedy="A catalogue is a short list.")
        found = Catalogue.model_validate_json(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        remedy = f"Write it, or unset {ENVIRONMENT}."
        raise InvalidRequest(
            f"the catalogue {path} cannot be read: {error.strerror or error}", remedy=remedy
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidRequest(f"{path}: {at}: {first['msg']}", remedy="docs/models.md shows the form.") from error
    for name, model in found.models.items():
        check_name(name, "model")
        for target in model.variants:
            check_name(target, "target")
    return found
