"""Summarises a model's placement for ``gptoss inspect``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import onnx_ir as ir

from gptoss_convert.placement.check import Device, Reason, Verdict, judge
from gptoss_convert.placement.table import load_table

Severity = Literal["error", "cpu", "remark"]


@dataclass(frozen=True)
class Group:
    """Nodes of one operator with the same reason.

    Attributes:
        severity: "error": fails on DirectML or in onnxruntime-genai; "cpu": runs on the CPU; "remark": runs on
            DirectML.
        reason: why.
        operator: "domain::operator".
        detail: the first node's reason in words.
        nodes: number of nodes.
        first: the first node's name.
    """

    severity: Severity
    reason: str
    operator: str
    detail: str
    nodes: int
    first: str


@dataclass(frozen=True)
class GraphPlacement:
    """Where the nodes of one graph run.

    Attributes:
        provider: "directml".
        release: the onnxruntime release of the table of kernels.
        nodes: number of nodes, without Constants.
        on_provider: nodes on DirectML.
        folded: nodes that are computed once, when the session is created.
        groups: nodes with a reason, errors first.
        only_shape_arithmetic: whether there are nodes on the CPU and all of them are shape arithmetic.
    """

    provider: str
    release: str
    nodes: int
    on_provider: int
    folded: int
    groups: Sequence[Group]
    only_shape_arithmetic: bool

    @property
    def whole(self) -> bool:
        """Whether every node runs correctly on DirectML."""
        return all(group.severity == "remark" for group in self.groups)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "whole": self.whole}

    def __str__(self) -> str:
        folded = f" ({self.folded} of them computed at load)" if self.folded else ""
        known = f" by the kernels of onnxruntime {self.release}"
        if self.whole:
            return f"all {self.nodes} nodes on DirectML{folded}{known}"
        broken = sum(group.nodes for group in self.groups if group.severity == "error")
        off = self.nodes - self.on_provider - self.folded
        parts = [f"{off} of {self.nodes} nodes on the CPU"] if off else [f"all {self.nodes} nodes on DirectML"]
        parts += ["only shape arithmetic"] if self.only_shape_arithmetic else []
        parts += [f"{broken} fail there"] if broken else []
        return ", ".join(parts) + known


def predict_placement(model: ir.Model) -> GraphPlacement:
    """Predicts where a model's nodes run on DirectML, and summarises it.

    Args:
        model: the model; its weights are not read.

    Raises:
        ConversionError: the table of kernels is missing or damaged.
    """
    verdicts = judge(model)
    devices = Counter(verdict.device for verdict in verdicts)
    off = [verdict for verdict in verdicts if verdict.device is Device.CPU]
    return GraphPlacement(
        provider="directml",
        release=load_table().release,
        nodes=len(verdicts),
        on_provider=devices[Device.DIRECTML],
        folded=devices[Device.FOLDED],
        groups=_groups(verdicts),
        only_shape_arithmetic=bool(off) and all(verdict.reason is Reason.SHAPE_ARITHMETIC for verdict in off),
    )


def _groups(verdicts: Sequence[Verdict]) -> list[Group]:
    found: dict[tuple[Severity, str, str], list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.reason is not None:
            found.setdefault((_severity(verdict), verdict.reason.value, verdict.operator), []).append(verdict)
    rank = {"error": 0, "cpu": 1, "remark": 2}
    ordered = sorted(found.items(), key=lambda item: (rank[item[0][0]], -len(item[1]), item[0]))
    return [Group(*key, group[0].detail, len(group), group[0].node) for key, group in ordered]


def _severity(verdict: Verdict) -> Severity:
    if verdict.device is Device.CPU:
        return "cpu"
    # right in plain onnxruntime, but onnxruntime-genai captures graphs on DirectML
    uncapturable = (Reason.CONTROL_FLOW, Reason.HOST_INPUT)
    return "error" if verdict.reason in (Reason.BROKEN, *uncapturable) else "remark"
