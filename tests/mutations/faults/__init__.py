"""The table of faults, by what they break."""

from __future__ import annotations

from tests.mutations.fault import Fault

from . import attention, experts, precision, weights

FAULTS: tuple[Fault, ...] = (*attention.FAULTS, *experts.FAULTS, *precision.FAULTS, *weights.FAULTS)
