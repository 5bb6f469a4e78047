"""Predicts, without Windows, which of a model's nodes run on DirectML.

:mod:`~gptoss_convert.placement.check` looks up each node in the :mod:`~gptoss_convert.placement.table` of kernels.
tools/placement_table generates the table from a release of onnxruntime-directml; docs/placement.md says how it is
verified.
"""

from gptoss_convert.placement.check import Device, Reason, Verdict, judge
from gptoss_convert.placement.report import GraphPlacement, predict_placement

__all__ = ["Device", "GraphPlacement", "Reason", "Verdict", "judge", "predict_placement"]
