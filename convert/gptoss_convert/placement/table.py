"""The table of DirectML's kernels: operator versions and types.

directml.json is generated from one release of onnxruntime-directml by tools/placement_table. measured.json lists where
the real provider behaves differently from its registry; tests/directml/test_placement_table.py verifies both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gptoss_convert.errors import ConversionError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Kernel:
    """One registered kernel.

    Attributes:
        domain: of the operator; "" is ai.onnx.
        op: the operator's name.
        since: the operator version it is registered for.
        types: element types by type constraint.
        host: indices of the inputs that it reads on the CPU.
        query: the function that onnxruntime asks about a node's attributes; "" if there is none.
    """

    domain: str
    op: str
    since: int
    types: Mapping[str, tuple[str, ...]]
    host: tuple[int, ...]
    query: str = ""


@dataclass(frozen=True)
class Signature:
    """The type names of an operator's inputs and outputs.

    Attributes:
        since: the operator's version.
        inputs: a type constraint's name or a type, by position; the last repeats.
        outputs: likewise.
        only: the type of each constraint that allows a single one.
    """

    since: int
    inputs: Sequence[str]
    outputs: Sequence[str]
    only: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """The kernels that one release registers for DirectML.

    Attributes:
        release: of onnxruntime.
        provenance: the sources of the rows.
        kernels: by domain and operator ("" is ai.onnx), then by since version.
        signatures: of contributed operators, registered or not, by "domain::operator".
        measured: types that a kernel is registered for and yet refuses or fails on, and why.
    """

    release: str
    provenance: Sequence[Mapping[str, str]]
    kernels: Mapping[tuple[str, str], Mapping[int, Kernel]]
    signatures: Mapping[str, Signature]
    measured: Sequence[Mapping[str, Any]]

    def versions(self, domain: str, op: str) -> list[int]:
        """The registered since versions, ascending."""
        return sorted(self.kernels.get((domain, op), {}))

    def kernel(self, domain: str, op: str, since: int) -> Kernel | None:
        """The kernel for exactly this since version; onnxruntime uses no other if a kernel has no last version."""
        return self.kernels.get((domain, op), {}).get(since)

    def exceptions(self, kernel: Kernel) -> list[Mapping[str, Any]]:
        """The measured exceptions of a kernel."""
        key = (kernel.domain, kernel.op)
        return [
            entry for entry in self.measured if (entry["domain"], entry["op"]) == key and kernel.since in entry["since"]
        ]


@cache
def load_table() -> Table:
    """Loads the table that ships with the converter; cached.

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
            f"the table of DirectML's kernels is damaged: {error}", remedy="Reinstall gptoss-windows."
        ) from error


def _kernels(sets: list[list[str]], lines: list[list[Any]]) -> dict[tuple[str, str], dict[int, Kernel]]:
    kernels: dict[tuple[str, str], dict[int, Kernel]] = {}
    for domain, op, since, types, host, query in lines:
        named = {name: tuple(sets[index]) for name, index in types.items()}
        kernels.setdefault((domain, op), {})[since] = Kernel(domain, op, since, named, tuple(host), query)
    return kernels
