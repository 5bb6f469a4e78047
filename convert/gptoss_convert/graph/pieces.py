"""How large a product may be: DirectML dequantises a whole weight into a temporary before it multiplies.

Measured in the lab (docs/directml.md): 2 bytes a parameter, constant or not, one token or many. Drivers
with a kernel of their own for quantised products need less; nobody can count on that.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Limit:
    """The most bytes that one dequantised weight may take."""

    nbytes: int

    def spans(self, count: int, nbytes: int) -> list[tuple[int, int]]:
        """Cuts ``count`` rows or experts that take ``nbytes`` together into the fewest equal spans, [start, end)."""
        number = min(count, max(1, -(-nbytes // self.nbytes)))
        return list(pairwise(round(count * piece / number) for piece in range(number + 1)))
