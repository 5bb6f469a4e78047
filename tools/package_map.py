"""Draws the packages' structure from their imports, and lists their modules in CONTRIBUTING.md.

``python -m tools.package_map`` writes both. ``tests/test_layout.py`` fails when they are out of date, when modules
import each other in a circle, or when a package imports one above it. Reads source text; imports nothing of it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
SOURCES = {"gptoss_runtime": ROOT / "runtime", "gptoss_convert": ROOT / "convert"}
PICTURES = {package: ROOT / "docs" / "pictures" / f"{package}.svg" for package in SOURCES}
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- begin map: python -m tools.package_map -->", "<!-- end map -->"

_BOX_WIDTH, _BOX_HEIGHT, _GAP, _ROW_HEIGHT = 128, 44, 16, 84
_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui" font-size="13">
<style>.p{{fill:#eef2fb;stroke:#3a5bb8;stroke-width:1.5}}.m{{fill:#fff;stroke:#3a5bb8}}
text{{fill:#1b1b1f;text-anchor:middle}}.s{{font-size:11px;fill:#55555c}}
.a{{stroke:#8a8a94;stroke-width:1.2;fill:none;marker-end:url(#h)}}</style>
<defs><marker id="h" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">
<path d="M0 0 8 4 0 8z" fill="#8a8a94"/></marker></defs>
<rect width="{width}" height="{height}" fill="#fff"/>"""

Graph = dict[str, set[str]]
Cell = str | tuple[str, str, int]  # a box, or the place where an arrow between two boxes passes a row


@dataclass(frozen=True, slots=True)
class Module:
    """A module: its dotted name, its file, the first line of its docstring, and the project's modules it imports."""

    name: str
    path: Path
    summary: str
    imports: frozenset[str]

    @property
    def package(self) -> str:
        """The package it belongs to; a package's own ``__init__`` belongs to itself."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


def read_modules(sources: Mapping[str, Path] = SOURCES) -> dict[str, Module]:
    """Every module of the packages, by dotted name; imports inside functions and for type checkers count too.

    Args:
        sources: the folder that holds each top-level package.
    """
    files = {
        name: path
        for package, folder in sources.items()
        for path in sorted((folder / package).rglob("*.py"))
        for name in [".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")]
    }
    return {name: _read_module(name, path, files) for name, path in files.items()}


def _read_module(name: str, path: Path, known: Mapping[str, Path]) -> Module:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    summary = (ast.get_docstring(tree) or "").split("\n", 1)[0]
    return Module(name, path, summary, frozenset(_imports(tree, known)) - {name})


def _imports(tree: ast.AST, known: Mapping[str, Path]) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            if package in known:
                named = (f"{package}.{alias.name}" for alias in node.names)
                yield from (submodule if submodule in known else package for submodule in named)


def find_circle(graph: Graph) -> list[str] | None:
    """Nodes that depend on each other in a circle, the first one repeated at the end; ``None`` if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return None


def module_graph(modules: Mapping[str, Module]) -> Graph:
    """What each module imports."""
    return {name: set(module.imports) for name, module in modules.items()}


def package_graph(modules: Mapping[str, Module]) -> Graph:
    """What each box of the picture imports; see ``box_of``."""
    graph: Graph = {}
    for module in modules.values():
        box = box_of(module, modules)
        graph.setdefault(box, set()).update({box_of(modules[other], modules) for other in module.imports} - {box})
    return graph


def box_of(module: Module, modules: Mapping[str, Module]) -> str:
    """The box that a module is drawn in: the package below its top-level package, or itself where there is none."""
    first_two = ".".join(module.name.split(".")[:2])
    return first_two if first_two in modules else module.name


def levels(graph: Graph) -> list[list[str]]:
    """Boxes by level, the lowest first: each stands above everything that it imports."""
    level: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        level[node] = 1 + max((level[below] for below in graph.get(node, ())), default=-1)
    return [sorted(node for node, at in level.items() if at == row) for row in range(max(level.values()) + 1)]


def without_implied(graph: Graph) -> Graph:
    """The graph without arrows that a longer way implies (its transitive reduction)."""
    reached: Graph = {}
    for node in TopologicalSorter(graph).static_order():
        reached[node] = set(graph.get(node, ())).union(*(reached[below] for below in graph.get(node, ())))
    return {
        node: {one for one in below if not any(one in reached[other] for other in below)}
        for node, below in graph.items()
    }


def draw(package: str, modules: Mapping[str, Module]) -> str:
    """An SVG of a top-level package: a box for each package and module in it, and an arrow for each import."""
    own = {name: module for name, module in modules.items() if name.startswith(f"{package}.")}
    inside = {name: replace(module, imports=module.imports & own.keys()) for name, module in own.items()}
    graph = package_graph(inside)
    counts = Counter(box_of(module, inside) for module in inside.values())
    rows, paths = _place(without_implied(graph), levels(graph)[::-1])
    width = max(sum(_width(cell) + _GAP for cell in row) for row in rows) + _GAP
    at: dict[Cell, tuple[int, int]] = {}
    for line, row in enumerate(rows):
        x = (width - sum(_width(cell) + _GAP for cell in row) + _GAP) // 2
        for cell in row:
            at[cell] = (x + _width(cell) // 2, _GAP // 2 + line * _ROW_HEIGHT)
            x += _width(cell) + _GAP
    parts = [_HEAD.format(width=width, height=len(rows) * _ROW_HEIGHT)]
    parts += [_arrow([at[cell] for cell in path]) for path in paths]
    parts += [_box(cell.removeprefix(f"{package}."), counts[cell], *at[cell]) for cell in at if isinstance(cell, str)]
    return "\n".join([*parts, "</svg>", ""])


def _place(graph: Graph, rows: list[list[str]]) -> tuple[list[list[Cell]], list[list[Cell]]]:
    """Cells by row from the top, and each arrow as the cells it passes: a box, gaps in the rows between, a box."""
    row_of = {box: line for line, row in enumerate(rows) for box in row}
    cells: list[list[Cell]] = [list(row) for row in rows]
    paths: list[list[Cell]] = []
    for box, below in sorted(graph.items()):
        for other in sorted(below):
            between: list[Cell] = [(box, other, line) for line in range(row_of[box] + 1, row_of[other])]
            for cell in between:
                cells[cell[2]].append(cell)  # type: ignore[index]
            paths.append([box, *between, other])
    above: dict[Cell, list[Cell]] = {}
    for path in paths:
        for upper, lower in pairwise(path):
            above.setdefault(lower, []).append(upper)
    for line in range(1, len(cells)):  # each cell under the middle of what leads to it
        place = {cell: index / len(cells[line - 1]) for index, cell in enumerate(cells[line - 1])}
        cells[line].sort(key=lambda cell: sum(place[one] for one in above.get(cell, [])) / len(above.get(cell, [1])))
    return cells, paths


def _width(cell: Cell) -> int:
    return _BOX_WIDTH if isinstance(cell, str) else 0


def _arrow(points: list[tuple[int, int]]) -> str:
    """A curve from the first cell's lower edge to the last one's upper edge, straight through the gaps between."""
    drawn = []
    for index, ((x, y), (to_x, to_y)) in enumerate(pairwise(points)):
        y, to_y = y + _BOX_HEIGHT, to_y - 2
        start = f"M{x} {y}" if index == 0 else f"V{y}"
        bend = (to_y - y) // 2
        drawn.append(f"{start}C{x} {y + bend} {to_x} {to_y - bend} {to_x} {to_y}")
    return f'<path class="a" d="{"".join(drawn)}"/>'


def _box(name: str, modules: int, middle: int, y: int) -> str:
    kind, count = ("p", f"{modules} modules") if modules > 1 else ("m", "module")
    left = middle - _BOX_WIDTH // 2
    return (
        f'<rect class="{kind}" x="{left}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6"/>'
        f'<text x="{middle}" y="{y + 19}">{escape(name)}</text><text class="s" x="{middle}" y="{y + 35}">{count}</text>'
    )


def map_of(modules: Mapping[str, Module]) -> str:
    """The map in CONTRIBUTING.md: each package with its sentence and its modules, and each module outside of one."""
    lines = ["", "| | |", "|---|---|"]
    for name, module in sorted(modules.items()):
        if module.path.name == "__init__.py":
            inside = [other for other in modules.values() if other.package == name and other.name != name]
            listed = ", ".join(f"`{other.name.rpartition('.')[2]}`" for other in inside) if "." in name else ""
            lines.append(f"| **`{name}`** | {module.summary} {listed} |")
        elif module.package in SOURCES:
            lines.append(f"| `{name}` | {module.summary} |")
    return "\n".join([*lines, ""])


def page_with(page: str, table: str) -> str:
    """CONTRIBUTING.md with the map between its two marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE.name} has no {BEGIN} ... {END}")
    return f"{before}{begin}\n{table}\n{end}{after}"


def outputs() -> dict[Path, str]:
    """Every file that is made from the imports, with its text."""
    modules = read_modules()
    pictures = {path: draw(package, modules) for package, path in PICTURES.items()}
    return {**pictures, PAGE: page_with(PAGE.read_text(encoding="utf-8"), map_of(modules))}


if __name__ == "__main__":
    for path, text in outputs().items():
        path.write_text(text, encoding="utf-8", newline="\n")
