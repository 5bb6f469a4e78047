"""Locates folders that ship with the package, in a checkout or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def locate_resource(in_checkout: str, in_package: str) -> Path:
    """A folder of the checkout, by its path from the root; in a wheel, its copy inside the package."""
    checkout = _PACKAGE.parents[1] / in_checkout
    return checkout if checkout.is_dir() else _PACKAGE / in_package
