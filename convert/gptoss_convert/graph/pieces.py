"""The largest product: DirectML dequantises a whole weight into a temporary before it multiplies.

Measured in the lab (docs/directml.md): 2 bytes a parameter, whether the weight is a constant or not, for one token or
many. Drivers with their own kernel for quantised products need less, but a graph cannot rely on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Limit:
    """The most bytes that one dequantised weight may take."""

    nbytes: int

    def spans(self, count: int, nbytes: int) -> list[tuple[int, int]]:
        """Cuts ``count`` rows or experts that take ``nbytes`` in all into the fewest equal spans, [start, end)."""
        number = min(count, max(1, -(-nbytes // self.nbytes)))
        return list(pairwise(round(count * piece / number) for piece in range(number + 1)))
