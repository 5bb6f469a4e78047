"""docs/serving.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_it_names_exists() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in sources] == []
    assert [
        name for name in re.findall(r"`(test_\w+\.py)`", page) if not (ROOT / "tests" / "server" / name).exists()
    ] == []
