"""The layout of the packages: imports point downwards, and CONTRIBUTING.md shows them as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import package_map
from tools.package_map import SOURCES, find_circle, levels, module_graph, package_graph, read_modules

MODULES = read_modules()
DIALECTS = {"chat_completions", "responses", "foundry", "page"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert find_circle(module_graph(MODULES)) is None


def test_no_package_imports_one_above_it() -> None:
    assert find_circle(package_graph(MODULES)) is None


def test_the_runtime_never_imports_the_converter() -> None:
    importers = {
        name.partition(".")[0]
        for name, module in MODULES.items()
        for other in module.imports
        if other.startswith("gptoss_convert")
    }
    assert importers == {"gptoss_convert"}


def test_the_wheel_never_imports_the_maintainers_tools() -> None:
    outside = re.compile(r"^\s*(?:from|import) (?:tools|tests|benchmarks)\b", re.M)
    assert [name for name, module in MODULES.items() if outside.search(module.path.read_text(encoding="utf-8"))] == []


def test_the_servers_dialects_are_independent() -> None:
    """No dialect imports another, only the app imports dialects, and the core knows nothing of OpenAI's APIs."""
    prefix = "gptoss_runtime.server."

    def dialect(name: str) -> str | None:
        first = name.removeprefix(prefix).split(".")[0]
        return first if name.startswith(prefix) and first in DIALECTS else None

    importers = {
        name
        for name, module in MODULES.items()
        for other in module.imports
        if dialect(other) is not None and dialect(name) != dialect(other)
    }
    assert importers == {"gptoss_runtime.server.app"}
    openai_users = {
        name.removeprefix(prefix).split(".")[0]
        for name, module in MODULES.items()
        if any(other.startswith(f"{prefix}openai") for other in module.imports)
    }
    assert openai_users == {"openai", "chat_completions", "responses", "app"}


def test_every_module_says_what_it_does() -> None:
    assert [name for name, module in MODULES.items() if not module.summary] == []


def test_the_map_and_the_pictures_are_up_to_date() -> None:
    for path, text in package_map.outputs().items():
        assert path.read_text(encoding="utf-8") == text, "run: python -m tools.package_map"


def _write(folder: Path, files: dict[str, str]) -> dict[str, package_map.Module]:
    for name, text in files.items():
        path = folder / "demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""One."""\n{text}', encoding="utf-8")
    return read_modules({"demo": folder})


def test_circles_are_found(tmp_path: Path) -> None:
    modules = _write(
        tmp_path,
        {
            "__init__.py": "",
            "a/__init__.py": "",
            "a/one.py": "def f():\n    from demo.b import two\n",
            "a/three.py": "",
            "b/__init__.py": "",
            "b/two.py": "from demo.a.three import x\n",
        },
    )
    assert find_circle(module_graph(modules)) is None
    assert find_circle(package_graph(modules)) in (["demo.a", "demo.b", "demo.a"], ["demo.b", "demo.a", "demo.b"])


@pytest.mark.parametrize("line", ["import demo.two", "from demo.two import x", "from demo import two"])
def test_every_way_to_import_counts(tmp_path: Path, line: str) -> None:
    modules = _write(tmp_path, {"__init__.py": "", "one.py": line, "two.py": ""})
    assert "demo.two" in modules["demo.one"].imports
    assert levels(package_graph(modules)).index(["demo.one"]) > 0


@pytest.mark.parametrize("package", SOURCES)
def test_a_picture_shows_every_package(package: str) -> None:
    drawn = package_map.draw(package, MODULES)
    for name, module in MODULES.items():
        if module.path.name == "__init__.py" and name.count(".") == 1 and name.startswith(package):
            assert f">{name.partition('.')[2]}</text>" in drawn
