"""Where a model's nodes would run on DirectML, known without Windows.

:mod:`~gptoss_convert.placement.check` judges a model by :mod:`~gptoss_convert.placement.table`, which
:mod:`~gptoss_convert.placement.generate` makes of an onnxruntime release; docs/placement.md says how far it is proven.
"""

from gptoss_convert.placement.check import Device, Reason, Verdict, judge
from gptoss_convert.placement.report import Placement, place

__all__ = ["Device", "Placement", "Reason", "Verdict", "judge", "place"]
