"""Targets: each module here is one, and is all there is of it beside its olive_configs/<name>.json.

A target is a :class:`gptoss_convert.targets.base.Target` named ``TARGET`` in a module named after it (dashes become
underscores). Adding one adds a module and a config and edits none of the others.
"""

from __future__ import annotations

import importlib
import pkgutil

from gptoss_convert.errors import WorkflowError
from gptoss_convert.targets.base import Target


def names() -> list[str]:
    """The names of all targets, sorted."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load(name: str) -> Target:
    """The named target.

    Raises:
        WorkflowError: there is none of that name.
    """
    if name not in names():
        raise WorkflowError(f"no target {name!r}", remedy=f"Targets: {', '.join(names())}.")
    target: Target = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TARGET
    return target


__all__ = ["Target", "load", "names"]
