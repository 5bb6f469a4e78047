"""A checkpoint as a reference: its final states are computed once, its logits where they are asked for.

Knows the streaming pass and what of it is kept; knows nothing of artifacts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import CheckpointError
from gptoss_convert.parity import streaming
from gptoss_convert.parity.metrics import Distributions
from gptoss_convert.parity.reference_file import About, SavedReference

LAYER_POSITIONS = 512  # of the first sequence, whose hidden states are kept: 147 MB of the 20b's
ROWS = 256  # logits held at a time: 206 MB at 201,088 tokens
KEPT = 1024  # tokens of a saved position


class CheckpointReference:
    """See :class:`gptoss_convert.parity.reference_file.Reference`.

    Args:
        checkpoint: whose.
        token_ids: sequences, each of at least one token.
        text: what they are, in words.

    Raises:
        CheckpointError: its config.json or index cannot be read.
    """

    def __init__(self, checkpoint: Checkpoint, token_ids: Sequence[Sequence[int]], text: str) -> None:
        self.about = About.of(checkpoint, text, token_ids)
        self.token_ids = [list(sequence) for sequence in token_ids]
        self.hidden_states: NDArray[np.float32] | None = None
        self._checkpoint = checkpoint
        self._states: list[torch.Tensor] | None = None

    def compute(
        self, *, layers: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> list[torch.Tensor]:
        """Computes the final states, float32 [tokens, hidden] of each sequence; ``rows`` does so if nobody did.

        Args:
            layers: keep the hidden states of the first sequence's first ``LAYER_POSITIONS`` tokens.
            progress: called with (layers done, layers).

        Raises:
            CheckpointError: a weight cannot be read, or what is computed is not finite.
        """
        kept: list[NDArray[np.float32]] = []
        positions = min(LAYER_POSITIONS, len(self.token_ids[0]))

        def keep(layer: int, name: str, values: torch.Tensor) -> None:
            if name.startswith("hidden_states."):
                kept.append(values[:positions].numpy().copy())

        observe = keep if layers else None
        self._states = streaming.final_states(self._checkpoint, self.token_ids, observe=observe, progress=progress)
        if layers:
            self.hidden_states = np.stack(kept)
        return self._states

    def rows(self, where: Sequence[tuple[int, int]]) -> Distributions:
        """See :class:`gptoss_convert.parity.reference_file.Reference`; one pass over lm_head for all of them."""
        computed = self._states or self.compute()
        states = torch.stack([computed[sequence][position] for sequence, position in where])
        logits = streaming.head(self._checkpoint, states).numpy()
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"{self._checkpoint.path}: logits are not finite, in float32",
                remedy="Check the checkpoint's weights for NaN and infinity.",
            )
        return Distributions(logits)

    def saved(self, kept: int = KEPT, progress: Callable[[int, int], None] | None = None) -> SavedReference:
        """All of it, with the ``kept`` likeliest tokens of each position.

        Args:
            kept: how many; all of a smaller vocabulary.
            progress: called with (positions done, positions).
        """
        where = [(s, p) for s, sequence in enumerate(self.token_ids) for p in range(len(sequence))]
        parts = []
        for at in range(0, len(where), ROWS):
            parts.append(self.rows(where[at : at + ROWS]).keep(kept))
            if progress:
                progress(min(at + ROWS, len(where)), len(where))
        tokens = np.array([token for sequence in self.token_ids for token in sequence], np.int32)
        return SavedReference(self.about, tokens, Distributions.joined(parts), self.hidden_states)
