"""Which KV cache a generation goes on with, where several are kept.

A slot is a sequence of tokens whose keys and values are in memory. Knows their tokens, owners and sizes; knows nothing
of how they are computed.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

import numpy as np


class Sequence(Protocol):
    """Tokens in a KV cache.

    ``room`` is how many positions were allocated; ``owner`` belongs to the generation that is using it, None: idle.
    """

    tokens: list[int]
    room: int
    owner: object


S = TypeVar("S", bound=Sequence)


class Slots(Generic[S]):
    """Keeps the sequences of generations that run, and those of ended ones as long as there is room.

    For one thread at a time, but for ``release``.

    Args:
        count: sequences at most.
        idle_room: positions that idle sequences may have allocated together; the least recently used go first.
    """

    def __init__(self, count: int, idle_room: int) -> None:
        self.count = count
        self._idle_room = idle_room
        self._kept: list[S] = []  # the least recently used first

    def take(self, tokens: list[int], owner: object) -> S | None:
        """Takes out the sequence to go on with; ``put`` brings it back, so that one that failed is gone.

        It is the owner's own, or else the idle one most of which is a prefix of ``tokens``, or else, where no further
        one may be kept, the least recently used. With fewer slots than running generations they rob each other.

        Returns:
            None: make a new one.
        """
        kept = list(self._kept)
        chosen = next((sequence for sequence in kept if sequence.owner is owner), None)
        if chosen is None:
            idle = [sequence for sequence in kept if sequence.owner is None]
            best = max(idle, key=lambda sequence: _worth(sequence, tokens), default=None)
            if best is not None and _worth(best, tokens) > 0:
                chosen = best
            elif len(kept) >= self.count:
                chosen = (idle or kept)[0]
        if chosen is not None:
            self._kept.remove(chosen)
        return chosen

    def put(self, sequence: S, owner: object) -> None:
        """Keeps a sequence as the owner's."""
        sequence.owner = owner
        self._kept.append(sequence)
        self.trim()

    def release(self, owner: object) -> None:
        """The owner has ended: its sequence is idle; from any thread, and in a finaliser."""
        for sequence in tuple(self._kept):
            if sequence.owner is owner:
                sequence.owner = None

    def drop(self, owner: object) -> None:
        """Drops the owner's sequence: what is in its KV cache is wrong."""
        self._kept = [kept for kept in self._kept if kept.owner is not owner]

    def trim(self) -> None:
        """Drops idle sequences that are too many."""
        room = self._idle_room
        for sequence in [kept for kept in reversed(self._kept) if kept.owner is None]:
            room -= sequence.room
            if room < 0:
                self._kept.remove(sequence)

    def clear(self, *, idle: bool = False) -> bool:
        """Drops all sequences, or all idle ones; whether there were any."""
        before = len(self._kept)
        self._kept = [kept for kept in self._kept if idle and kept.owner is not None]
        return len(self._kept) < before

    def __len__(self) -> int:
        return len(self._kept)


def _worth(sequence: Sequence, tokens: list[int]) -> float:
    """Tokens saved by going on with a sequence; what it loses counts half: not every conversation goes on."""
    shared = common_prefix(sequence.tokens, tokens)
    return shared - (len(sequence.tokens) - shared) / 2


def common_prefix(one: list[int], other: list[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    length = min(len(one), len(other))
    different = np.flatnonzero(np.asarray(one[:length]) != np.asarray(other[:length]))
    return int(different[0]) if different.size else length
