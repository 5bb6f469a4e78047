"""The KV cache slots of an engine: which cached sequence a generation continues, and which ones are kept.

Knows the sequences' tokens, owners and sizes; knows nothing of how keys and values are computed.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import numpy as np


class CachedSequence(Protocol):
    """Tokens whose keys and values are in memory.

    ``capacity`` is the number of positions allocated; ``owner`` identifies the generation using it, None if idle.
    """

    tokens: list[int]
    capacity: int
    owner: object


S = TypeVar("S", bound=CachedSequence)


class KVSlotPool(Generic[S]):
    """Holds the sequences of running generations, and those of ended ones while there is room.

    Not thread-safe, except ``release``.

    Args:
        count: maximum number of sequences.
        idle_capacity: positions that all idle sequences together may have allocated; the least recently used are
            dropped first.
    """

    def __init__(self, count: int, idle_capacity: int) -> None:
        self.count = count
        self._idle_capacity = idle_capacity
        self._sequences: list[S] = []  # least recently used first

    def take(self, tokens: list[int], owner: object) -> S | None:
        """Removes and returns the sequence to continue with; ``put`` adds it again, so one that fails stays removed.

        In order of preference: the owner's own sequence; the idle one that shares the longest prefix with ``tokens``,
        net of what continuing discards; and if the pool is full, the least recently used, preferably an idle one.
        With more running generations than slots, they evict each other's cache.

        Returns:
            The sequence, or None if a new one is needed.
        """
        sequences = list(self._sequences)
        chosen = next((sequence for sequence in sequences if sequence.owner is owner), None)
        if chosen is None:
            idle = [sequence for sequence in sequences if sequence.owner is None]
            best = max(idle, key=lambda sequence: _score_reuse(sequence, tokens), default=None)
            if best is not None and _score_reuse(best, tokens) > 0:
                chosen = best
            elif len(sequences) >= self.count:
                chosen = (idle or sequences)[0]
        if chosen is not None:
            self._sequences.remove(chosen)
        return chosen

    def put(self, sequence: S, owner: object) -> None:
        """Adds a sequence in use by ``owner``."""
        sequence.owner = owner
        self._sequences.append(sequence)
        self.trim()

    def release(self, owner: object) -> None:
        """Marks the owner's sequence as idle; safe to call from any thread and from a finaliser."""
        for sequence in tuple(self._sequences):
            if sequence.owner is owner:
                sequence.owner = None

    def drop(self, owner: object) -> None:
        """Drops the owner's sequence, because its keys and values are wrong."""
        self._sequences = [sequence for sequence in self._sequences if sequence.owner is not owner]

    def trim(self) -> None:
        """Drops the least recently used idle sequences until the others fit ``idle_capacity``."""
        remaining = self._idle_capacity
        for sequence in [sequence for sequence in reversed(self._sequences) if sequence.owner is None]:
            remaining -= sequence.capacity
            if remaining < 0:
                self._sequences.remove(sequence)

    def clear(self, *, idle: bool = False) -> bool:
        """Drops all sequences, or only the idle ones; returns whether any was dropped."""
        before = len(self._sequences)
        self._sequences = [sequence for sequence in self._sequences if idle and sequence.owner is not None]
        return len(self._sequences) < before

    def __len__(self) -> int:
        return len(self._sequences)


def _score_reuse(sequence: CachedSequence, tokens: list[int]) -> float:
    """Tokens that need not be computed again, minus half of those discarded: their conversation may not continue."""
    shared = common_prefix(sequence.tokens, tokens)
    return shared - (len(sequence.tokens) - shared) / 2


def common_prefix(one: list[int], other: list[int]) -> int:
    """Length of the longest common prefix of two sequences."""
    length = min(len(one), len(other))
    different = np.flatnonzero(np.asarray(one[:length]) != np.asarray(other[:length]))
    return int(different[0]) if different.size else length
