"""A reference computed from a checkpoint: final hidden states once, logits at the requested positions."""

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

LAYER_POSITIONS = 512  # of the first sequence, with hidden states of every layer: 147 MB for gpt-oss-20b
ROWS = 256  # positions whose logits are in memory at a time: 206 MB at 201,088 tokens
TOP_K = 1024  # tokens saved for each position


class CheckpointReference:
    """A :class:`gptoss_convert.parity.reference_file.Reference` that is computed.

    Args:
        checkpoint: the checkpoint.
        token_ids: sequences, each of at least one token.
        text: a description of the sequences.

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
        """Computes the final hidden states, float32 [tokens, hidden] of each sequence.

        ``distributions_at`` calls this if it has not been called.

        Args:
            layers: keep every layer's hidden states for the first ``LAYER_POSITIONS`` tokens of the first sequence.
            progress: called with (layers done, layers).

        Raises:
            CheckpointError: a weight cannot be read, or a hidden state is not finite.
        """
        kept: list[NDArray[np.float32]] = []
        positions = min(LAYER_POSITIONS, len(self.token_ids[0]))

        def keep(layer: int, name: str, values: torch.Tensor) -> None:
            if name.startswith("hidden_states."):
                kept.append(values[:positions].numpy().copy())

        observe = keep if layers else None
        self._states = streaming.compute_final_states(
            self._checkpoint, self.token_ids, observe=observe, progress=progress
        )
        if layers:
            self.hidden_states = np.stack(kept)
        return self._states

    def distributions_at(self, where: Sequence[tuple[int, int]]) -> Distributions:
        """See :class:`gptoss_convert.parity.reference_file.Reference`; reads lm_head once for all positions."""
        computed = self._states or self.compute()
        states = torch.stack([computed[sequence][position] for sequence, position in where])
        logits = streaming.compute_logits(self._checkpoint, states).numpy()
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"{self._checkpoint.path}: logits are not finite in float32",
                remedy="Check the checkpoint's weights for NaN and infinity.",
            )
        return Distributions(logits)

    def to_saved(self, top_k: int = TOP_K, progress: Callable[[int, int], None] | None = None) -> SavedReference:
        """Computes the distributions at every position, for a file.

        Args:
            top_k: tokens to keep for each position; all of a smaller vocabulary.
            progress: called with (positions done, positions).
        """
        where = [(s, p) for s, sequence in enumerate(self.token_ids) for p in range(len(sequence))]
        parts = []
        for at in range(0, len(where), ROWS):
            parts.append(self.distributions_at(where[at : at + ROWS]).top_k(top_k))
            if progress:
                progress(min(at + ROWS, len(where)), len(where))
        tokens = np.array([token for sequence in self.token_ids for token in sequence], np.int32)
        return SavedReference(self.about, tokens, Distributions.concatenate(parts), self.hidden_states)
