"""Targets: each module here but base.py is one, and with olive_configs/<name>.json it is all there is of it.

A target is a :class:`gptoss_convert.targets.base.Target` named ``TARGET`` in a module named after it, with underscores
for dashes. Adding a target adds a module and a config; no other file lists the targets.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from gptoss_convert.errors import WorkflowError

if TYPE_CHECKING:
    from gptoss_convert.targets.base import Target


def names() -> list[str]:
    """The names of all targets, sorted. No target's module is imported."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if module.name != "base")


def load(name: str) -> Target:
    """Loads a target by its name.

    Raises:
        WorkflowError: there is no target of that name.
    """
    if name not in names():
        raise WorkflowError(f"no target {name!r}", remedy=f"Targets: {', '.join(names())}.")
    target: Target = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").TARGET
    return target


def __getattr__(name: str) -> Any:
    if name == "Target":  # imported on demand: the command line only needs the names
        from gptoss_convert.targets.base import Target

        return Target
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Target", "load", "names"]
