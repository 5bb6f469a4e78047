"""Batches of samples with shared prefixes.

Samples become flat tensors: each group of turns follows one prefix (system and developer message), whose keys and
values are computed once per group and not once per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from gptoss_convert.nano.skills import Sample


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """Padded rows as indices into the flat tokens.

    Attributes:
        index: int64 [rows, length], indices of the flat tokens; padding repeats the row's first token.
        valid: bool [rows, length], False for padding.
        positions: int64 [rows, length], positions in the sequence.
    """

    index: Tensor
    valid: Tensor
    positions: Tensor


@dataclass
class Batch:
    """Flat tokens: first those of all prefixes, then those of all turns.

    Attributes:
        tokens: int64 [N], token classes.
        positions: int64 [N], counted from the start of the prefix.
        prefixes: rows of the G prefixes.
        tails: rows of each prefix's last ``window`` tokens.
        turns: rows of the G * B turns, B per prefix.
        asked: int64 [A], indices of the flat tokens that are followed by a token of an answer.
        targets: int64 [A], the classes of those next tokens.
        owner: int64 [A], the index of each target's sample.
        window: of the sliding layers.
    """

    tokens: Tensor
    positions: Tensor
    prefixes: PaddedRows
    tails: PaddedRows
    turns: PaddedRows
    asked: Tensor
    targets: Tensor
    owner: Tensor
    window: int
    _masks: dict[bool, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def masks(self, sliding: bool) -> tuple[Tensor, Tensor]:
        """Additive attention masks, 0 or -inf, of prefixes and turns: [G, 1, P, P + 1] and [G * B, 1, S, P + S + 1].

        In sliding layers, P is at most the window. Keys are the prefix's tokens, then the turn's own, then the sink,
        which every query attends to.
        """
        if sliding not in self._masks:
            shared = self.tails if sliding else self.prefixes
            self._masks[sliding] = self._mask(self.prefixes, [], sliding), self._mask(self.turns, [shared], sliding)
        return self._masks[sliding]

    def _mask(self, to: PaddedRows, before: list[PaddedRows], sliding: bool) -> Tensor:
        keys = [(s.positions.repeat_interleave(len(to.index) // len(s.index), 0), s.valid) for s in (*before, to)]
        positions = torch.cat([positions for positions, _ in keys], dim=1)
        valid = torch.cat([v.repeat_interleave(len(to.index) // len(v), 0) for _, v in keys], dim=1)
        ahead = to.positions[:, :, None] - positions[:, None]
        seen = (ahead >= 0) & valid[:, None]
        if sliding:
            seen &= ahead < self.window
        mask = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return functional.pad(mask, (0, 1))[:, None]


def collate(groups: Sequence[Sequence[Sample]], classes: Tensor, window: int) -> Batch:
    """Builds a batch of groups.

    The samples of a group have the same setting, and all groups have the same number of samples.

    Args:
        groups: G groups of B samples.
        classes: int64 [vocabulary], the class of each token id.
        window: of the sliding layers.
    """
    prefixes = [group[0].prefix_ids for group in groups]
    prompts = [sample.turn_ids for group in groups for sample in group]
    answers = [sample.answer_ids for group in groups for sample in group]
    turns = [prompt + answer[:-1] for prompt, answer in zip(prompts, answers, strict=True)]
    starts = [len(prefix) for prefix, group in zip(prefixes, groups, strict=True) for _ in group]
    first = sum(map(len, prefixes))
    prefix_rows, turn_rows = _pad(prefixes, [0] * len(prefixes), 0), _pad(turns, starts, first)
    back = prefix_rows.valid.sum(1, keepdim=True) - window + torch.arange(window)  # negative before a prefix's start
    tails = PaddedRows(prefix_rows.index.gather(1, back.clamp(min=0)), back >= 0, back)
    asked: list[int] = []
    owner: list[int] = []
    at = first
    for sample, (turn, answer) in enumerate(zip(turns, answers, strict=True)):
        at += len(turn)
        asked += range(at - len(answer), at)
        owner += [sample] * len(answer)
    flat = [token for row in (*prefixes, *turns) for token in row]
    return Batch(
        tokens=classes[torch.tensor(flat)],
        positions=torch.cat([rows.positions[rows.valid] for rows in (prefix_rows, turn_rows)]),
        prefixes=prefix_rows,
        tails=tails,
        turns=turn_rows,
        asked=torch.tensor(asked),
        targets=classes[torch.tensor([token for answer in answers for token in answer])],
        owner=torch.tensor(owner),
        window=window,
    )


def _pad(rows: Sequence[Sequence[int]], starts: Sequence[int], first: int) -> PaddedRows:
    lengths = torch.tensor([len(row) for row in rows])
    offsets = first + lengths.cumsum(0) - lengths
    steps = torch.arange(int(lengths.max()))
    valid = steps < lengths[:, None]
    index = torch.where(valid, offsets[:, None] + steps, offsets[:, None])
    return PaddedRows(index, valid, torch.tensor(starts)[:, None] + steps)
