"""Locates nano's compact source."""

from __future__ import annotations

from pathlib import Path

from gptoss_convert.resources import locate_resource


def source_dir() -> Path:
    """The folder of the compact source: ``artifacts/nano`` of a checkout, else the copy in the package."""
    return locate_resource("artifacts/nano", "nano/source")
