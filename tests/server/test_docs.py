"""docs/serving.md names existing tests, and gives a source for each claim about other servers."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_named_test_exists() -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in sources] == []
    assert [
        name for name in re.findall(r"`(test_\w+\.py)`", page) if not (ROOT / "tests" / "server" / name).exists()
    ] == []


def test_every_claim_names_a_test_or_a_source() -> None:
    table = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split("## Compared with other servers")[1]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 20
    assert {len(row) for row in rows} == {6}
    for what, ours, *theirs in rows[1:]:
        assert ours.strip() in ("no", "gpt-oss") or re.search(r": `test_\w+`", ours), what
        for cell in theirs:  # ends with its source
            assert re.search(r" [msdr]\W*(, \w+ d )?$", cell) or cell.strip() == "?", (what, cell)
