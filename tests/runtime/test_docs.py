"""Runs the examples of docs/runtime.md and the README as they stand, on the nano artifact."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptoss_runtime.errors import GptOssError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE + README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["engine", "process", "chat", "guarantees", "plain", "readme"])
def test_an_example(
    example: str, nano_artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gptoss_runtime.artifact.vocabulary.platformdirs.user_cache_dir", lambda *_, **__: str(cache))
    monkeypatch.setattr("gptoss_runtime.engine.options.GenerationOptions.__init__.__defaults__", _bounded())
    exec(compile(example.replace("artifacts/gptoss-nano/cpu", nano_artifact.as_posix()), "example", "exec"), {})
    assert capsys.readouterr().out


def _bounded() -> tuple[object, ...]:
    """The options' defaults with a bound, so that a model that rambles does not slow the tests."""
    from gptoss_runtime.engine.options import GenerationOptions

    return (64, *GenerationOptions.__init__.__defaults__[1:])  # type: ignore[misc]


def test_links_lead_somewhere() -> None:
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("*/README.md"),
    ):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_test_that_a_promise_names_exists() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("## An artifact is data")[2]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 15
    assert [name for name in named if f"def {name}(" not in sources] == []
    for row in (line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| what")):
        assert "`test_" in row, row


def test_every_exit_code_is_in_the_table() -> None:
    def tree(error: type[GptOssError]) -> set[type[GptOssError]]:
        return {error}.union(*(tree(child) for child in error.__subclasses__()))

    for error in tree(GptOssError):
        if error.__module__ == "gptoss_runtime.errors":
            line = next(line for line in PAGE.splitlines() if f"`{error.__name__}`" in line and line.startswith("| "))
            assert line.startswith(f"| {error.exit_code} |")
