"""Where the nano checkpoint's compact source lies. Knows the two layouts: a checkout and an installed wheel."""

from __future__ import annotations

from pathlib import Path


def source_dir() -> Path:
    """The folder of the compact source: ``artifacts/nano`` of a checkout, else the copy inside the package."""
    checkout = Path(__file__).resolve().parents[3] / "artifacts" / "nano"
    return checkout if checkout.is_dir() else Path(__file__).resolve().parent / "source"
