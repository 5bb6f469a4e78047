"""The table: which kernels DirectML registers, in which version, for which types.

Knows directml.json, which generate.py makes of one release, and measured.json, where the real provider did otherwise
than its table says (tests/directml/test_placement_table.py runs it). Knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gptoss_convert.errors import ConversionError
from gptoss_convert.placement.sources import Row

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Signature:
    """The type names of a contributed operator's inputs and outputs.

    Attributes:
        since: its version.
        inputs: a constraint's name or a type, by position; the last stands for all that follow.
        outputs: likewise.
        only: the type of each constraint that allows one.
    """

    since: int
    inputs: Sequence[str]
    outputs: Sequence[str]
    only: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """What one release registers for DirectML.

    Attributes:
        release: of onnxruntime.
        provenance: where the rows are from.
        kernels: by domain and operator ("" is ai.onnx), then by since version.
        signatures: contributed operators, registered or not, by "domain::operator".
        measured: kernels that are registered for a type and yet refuse it, or break, and why.
    """

    release: str
    provenance: Sequence[Mapping[str, str]]
    kernels: Mapping[tuple[str, str], Mapping[int, Row]]
    signatures: Mapping[str, Signature]
    measured: Sequence[Mapping[str, Any]]

    def versions(self, domain: str, op: str) -> list[int]:
        """The since versions that are registered, ascending."""
        return sorted(self.kernels.get((domain, op), {}))

    def kernel(self, domain: str, op: str, since: int) -> Row | None:
        """The kernel for exactly this since version: onnxruntime takes no other where a kernel has no last version."""
        return self.kernels.get((domain, op), {}).get(since)

    def exceptions(self, row: Row) -> list[Mapping[str, Any]]:
        """What was measured of a kernel."""
        key = (row.domain, row.op)
        return [
            entry for entry in self.measured if (entry["domain"], entry["op"]) == key and row.since in entry["since"]
        ]


@cache
def directml() -> Table:
    """The table that ships with the converter.

    Raises:
        ConversionError: its files are missing or damaged.
    """
    try:
        generated = json.loads((_FOLDER / "directml.json").read_text(encoding="utf-8"))
        measured = json.loads((_FOLDER / "measured.json").read_text(encoding="utf-8"))
        kernels = _kernels(generated["type_sets"], generated["kernels"])
        signatures = {name: Signature(**entry) for name, entry in generated["signatures"].items()}
        return Table(generated["release"], generated["provenance"], kernels, signatures, measured)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConversionError(
            f"the table of DirectML's kernels is damaged: {error}", remedy="Install again."
        ) from error


def _kernels(sets: list[list[str]], lines: list[list[Any]]) -> dict[tuple[str, str], dict[int, Row]]:
    kernels: dict[tuple[str, str], dict[int, Row]] = {}
    for domain, op, since, types, host, query in lines:
        named = {name: tuple(sets[index]) for name, index in types.items()}
        kernels.setdefault((domain, op), {})[since] = Row(domain, op, since, named, tuple(host), query)
    return kernels
