"""Writes directml.json, the table of DirectML's kernels: ``python -m tools.placement_table.generate``.

Two sources are joined: onnxruntime's C++ files, which alone say which inputs a kernel reads on the CPU, and, if the
release can be run, its registry (registry.py), which is what was compiled. None of their text is copied.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptoss_convert import placement
from gptoss_convert.errors import ConversionError
from gptoss_convert.placement.table import Kernel
from tools.placement_table.sources import parse_kernels

TABLE = Path(placement.__file__).with_name("directml.json")
_SOURCES = ("OperatorRegistration.cpp", "OperatorVersions.h")


def format_table(
    kernels: Sequence[Kernel], signatures: Mapping[str, Any], release: str, provenance: Iterable[Any]
) -> str:
    """The table as JSON: one kernel per line, each set of types once."""
    sets = sorted({types for kernel in kernels for types in kernel.types.values()})
    lines = [
        json.dumps(
            [k.domain, k.op, k.since, {name: sets.index(t) for name, t in k.types.items()}, list(k.host), k.query]
        )
        for k in sorted(kernels, key=lambda k: (k.domain, k.op, k.since))
    ]
    parts = {
        "release": json.dumps(release),
        "provenance": _lines(json.dumps(entry) for entry in provenance),
        "type_sets": _lines(json.dumps(list(types)) for types in sets),
        "kernels": _lines(lines),
        "signatures": "{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(signatures[name])}" for name in sorted(signatures))
        + "\n }",
    }
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {value}" for name, value in parts.items()) + "\n}\n"


def join_sources(registered: Sequence[Mapping[str, Any]], read: Sequence[Kernel]) -> list[Kernel]:
    """Adds what the sources say of inputs and attributes to the registry's kernels.

    A version that the sources lack takes them from the next older version.

    Raises:
        ConversionError: a kernel is registered with a last version.
    """
    known: dict[tuple[str, str], dict[int, Kernel]] = {}
    for row in read:
        known.setdefault((row.domain, row.op), {})[row.since] = row
    result = []
    for kernel in registered:
        if kernel.get("until") is not None:
            raise ConversionError(
                f"{kernel['op']}-{kernel['since']} has a last version, which the table cannot hold",
                remedy="Add last versions to placement/table.py first.",
            )
        versions = known.get((kernel["domain"], kernel["op"]), {})
        older = [version for version in versions if version <= kernel["since"]]
        types = {name: tuple(sorted(kinds)) for name, kinds in sorted(kernel["types"].items())}
        like = versions[max(older)] if older else Kernel("", "", 0, {}, ())
        result.append(Kernel(kernel["domain"], kernel["op"], kernel["since"], types, like.host, like.query))
    return result


def compare_sources(registered: Sequence[Kernel], read: Sequence[Kernel]) -> dict[str, list[str]]:
    """Lists the kernels that only one of registry and sources has, or that differ in types."""
    mine = {(k.domain, k.op, k.since): k for k in registered}
    theirs = {(k.domain, k.op, k.since): k for k in read}
    named = {key: f"{key[0] or 'ai.onnx'}::{key[1]}-{key[2]}" for key in mine.keys() | theirs.keys()}

    def types(row: Kernel) -> dict[str, frozenset[str]]:
        return {name: frozenset(kinds) for name, kinds in row.types.items()}

    return {
        "only registered": sorted(named[key] for key in mine.keys() - theirs.keys()),
        "only in the sources": sorted(named[key] for key in theirs.keys() - mine.keys()),
        "other types": sorted(
            named[key] for key in mine.keys() & theirs.keys() if types(mine[key]) != types(theirs[key])
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the sources and the registry, and writes the table.

    Raises:
        ConversionError: a source is missing or cannot be parsed.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help=" and ".join(_SOURCES))
    parser.add_argument("--release", required=True, help="of onnxruntime, of the sources")
    parser.add_argument("--registry", type=Path, help="registry.py's output for the release to judge for")
    parser.add_argument("-o", "--output", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    texts = {path.name: path.read_text(encoding="utf-8") for path in options.sources}
    for name in _SOURCES:
        if name not in texts:
            raise ConversionError(f"{name} is not among the sources", remedy=f"Give {' and '.join(_SOURCES)}.")
    kernels = parse_kernels(texts[_SOURCES[0]], texts[_SOURCES[1]])
    release, signatures = options.release, {}
    provenance = [
        {"file": name, "release": options.release, "sha256": _sha256(texts[name]), "gives": "inputs read on the CPU"}
        for name in _SOURCES
    ]
    if options.registry:
        dump = json.loads(options.registry.read_text(encoding="utf-8"))
        read, kernels = kernels, join_sources(dump["kernels"], kernels)
        release, signatures = f"v{dump['release']}", dump["signatures"]
        gives = "kernels, versions, types, signatures"
        provenance.insert(0, {"file": "the registry of onnxruntime-directml", "release": release, "gives": gives})
        print(json.dumps(compare_sources(kernels, read), indent=1))
    options.output.write_text(format_table(kernels, signatures, release, provenance), encoding="utf-8", newline="\n")
    print(f"{len(kernels)} kernels of {release} in {options.output}")


def _lines(items: Iterable[str]) -> str:
    return "[\n" + ",\n".join(f"  {item}" for item in items) + "\n ]"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
