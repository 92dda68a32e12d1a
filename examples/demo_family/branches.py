"""Training rows in which wrong steps branch off a right solution.

The question takes most of a row's tokens. So the reward model reads it once, with the whole right
solution, and every wrong step follows as a branch: it sees the question and the right steps before
its place, but no other branch, and has the positions that it would have there. So each branch is
judged as if it ended a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

HIDDEN = -1e9  # added to the attention score of a token out of sight


@dataclass(frozen=True)
class Branch:
    """The tokens of a branch in its row, and its place in the trunk."""

    begin: int
    end: int
    place: int  # it sees the tokens of the trunk before this index


def positions(rows: Sequence[Sequence[Branch]], width: int) -> torch.Tensor:
    """Position of every token, [rows, width]."""
    found = torch.arange(width).repeat(len(rows), 1)
    for row, branches in zip(found, rows, strict=True):
        for branch in branches:
            row[branch.begin : branch.end] -= branch.begin - branch.place
    return found


def attention_mask(rows: Sequence[Sequence[Branch]], width: int) -> torch.Tensor:
    """What is added to attention scores: 0 or HIDDEN, [rows, 1, width, width]."""
    owner = torch.zeros(len(rows), width, dtype=torch.long)  # 0: the trunk
    sight = torch.zeros(len(rows), width, dtype=torch.long)  # how many trunk tokens it sees
    for index, branches in enumerate(rows):
        for number, branch in enumerate(branches, start=1):
            owner[index, branch.begin : branch.end] = number
            sight[index, branch.begin : branch.end] = branch.place
    token = torch.arange(width)
    same = owner[:, :, None] == owner[:, None, :]
    below = token[None, None, :] < sight[:, :, None]  # only trunk tokens come before a place
    seen = (same & (token[:, None] >= token)) | below
    return torch.where(seen, 0.0, HIDDEN)[:, None]
