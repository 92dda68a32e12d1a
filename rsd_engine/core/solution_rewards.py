"""Rewards of given steps, between two launches of the loop: the PRM reads whole solutions.

One pass reads tokens of many solutions, and each token is read once. K and V lie in pages of the
pool, by page tables of their own, and the pages are free again before the loop goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState, pages_for

TOKENS_PER_TURN = 4096  # read before the loop has its turn again, if a solution has not more

ReadRewards = Callable[[RowBatch, Tensor, Tensor], Tensor]
"""Reads a pass with a page table [S, P]; returns the rewards at the rows given, [k] float32."""


@dataclass(frozen=True)
class Solution:
    """A question and steps in the PRM's tokens."""

    segments: tuple[tuple[int, ...], ...]  # up to the end of each step, where its reward is read
    num_transient: int = 0  # of the last ids of each: they leave the context once they are read

    @property
    def length(self) -> int:
        """Most tokens of the context."""
        kept = sum(map(len, self.segments)) - self.num_transient * len(self.segments)
        return kept + self.num_transient


@dataclass
class SolutionRewards:
    """Reads solutions, in order.

    Args:
        state: whose pages it takes.
        read: the PRM's pass.
        max_rows: most rows of a pass.
        tokens_per_page: of the PRM.
        solutions: what to read.

    Attributes:
        rewards: of the steps of every solution read so far.
        tokens_read: of every solution read so far.
        lacks_pages: whether there were none for the next solution.
    """

    state: SlotState
    read: ReadRewards
    max_rows: int
    tokens_per_page: int
    solutions: Sequence[Solution]
    rewards: list[list[float]] = field(default_factory=list)
    tokens_read: list[int] = field(default_factory=list)
    lacks_pages: bool = False

    @property
    def is_done(self) -> bool:
        return len(self.rewards) == len(self.solutions)

    @property
    def most_pages(self) -> int:
        """What the largest solution needs."""
        return max(self._pages(solution) for solution in self.solutions)

    def read_some(self) -> None:
        """Reads the next solutions, while no launch runs, as far as there are pages."""
        left, tokens = int(self.state.num_free), 0
        group: list[Solution] = []
        for solution in self.solutions[len(self.rewards) :]:
            left -= self._pages(solution)
            tokens += solution.length
            if left < 0 or (group and tokens > TOKENS_PER_TURN):
                break
            group.append(solution)
        self.lacks_pages = not group
        if group:
            self._read_group(group)

    def _pages(self, solution: Solution) -> int:
        return pages_for(solution.length, self.tokens_per_page)

    def _read_group(self, group: list[Solution]) -> None:
        num_free = int(self.state.num_free)
        readings = [_Reading(solution) for solution in group]
        try:
            table = self._take_pages([self._pages(solution) for solution in group])
            while any(reading.is_open for reading in readings):
                self._pass(readings, table)
        finally:
            self.state.num_free.fill_(num_free)  # nobody else has moved the stack
        self.rewards += [reading.rewards for reading in readings]
        self.tokens_read += [reading.tokens_read for reading in readings]

    def _take_pages(self, counts: list[int]) -> Tensor:
        """A page table [S, P] of pages from the top of the stack."""
        left = int(self.state.num_free) - sum(counts)
        table = self.state.page_table.new_zeros(len(counts), max(counts))
        for row, (count, end) in enumerate(zip(counts, accumulate(counts), strict=True)):
            table[row, :count] = self.state.free_pages[left + end - count : left + end]
            self.state.page_stamp[table[row, :count].long()] += 1
        self.state.num_free.fill_(left)
        return table

    def _pass(self, readings: list[_Reading], table: Tensor) -> None:
        """As many tokens as a pass has rows; solutions that were begun come first."""
        spans: list[_Span] = []
        room = self.max_rows
        for row, reading in enumerate(readings):
            if room and reading.is_open:
                spans.append(reading.take(row, room))
                room -= len(spans[-1].ids)
        starts = [0, *accumulate(len(span.ids) for span in spans)]
        ends = [start + at for start, span in zip(starts, spans, strict=False) for at in span.ends]
        batch = self._batch(spans, starts, table)
        rows = torch.tensor(ends, dtype=torch.int64, device=table.device)  # none, in a long step
        rewards = iter(self.read(batch, table, rows).tolist())
        for span in spans:
            readings[span.row].rewards += [next(rewards) for _ in span.ends]

    def _batch(self, spans: list[_Span], starts: list[int], table: Tensor) -> RowBatch:
        rows = np.array([span.row for span in spans for _ in span.ids])
        position = np.array([span.start + i for span in spans for i in range(len(span.ids))])
        pages = table.cpu().numpy()[rows, position // self.tokens_per_page]
        batch = RowBatch.allocate(starts[-1], len(spans), table.device)
        for column, values in (
            (batch.token, [i for span in spans for i in span.ids]),
            (batch.slot, rows),
            (batch.position, position),
            (batch.page, pages),
            (batch.offset, position % self.tokens_per_page),
            (batch.seq_slot, [span.row for span in spans]),
            (batch.seq_start, starts),
            (batch.seq_kv_len, [span.start + len(span.ids) for span in spans]),
        ):
            column.copy_(torch.as_tensor(np.asarray(values, dtype=np.int32)))
        return batch


@dataclass(frozen=True)
class _Span:
    """What a pass reads of one solution."""

    row: int  # of the page table
    start: int  # position of the first token
    ids: list[int]
    ends: list[int]  # which of them are read for a reward


class _Reading:
    """How far a solution has been read."""

    def __init__(self, solution: Solution) -> None:
        self.rewards: list[float] = []
        self.tokens_read = 0
        self._kv_len = 0
        self._at = 0  # in the first segment left
        self._segments = deque(solution.segments)
        self._num_transient = solution.num_transient

    @property
    def is_open(self) -> bool:
        return bool(self._segments)

    def take(self, row: int, room: int) -> _Span:
        """The next tokens, at most `room`; none after ids that have to leave first."""
        ids: list[int] = []
        ends: list[int] = []
        while self._segments and len(ids) < room and not (ends and self._num_transient):
            segment = self._segments[0]
            part = segment[self._at : self._at + room - len(ids)]
            ids += part
            self._at += len(part)
            if self._at == len(segment):
                ends.append(len(ids) - 1)
                self._segments.popleft()
                self._at = 0
        span = _Span(row, self._kv_len, ids, ends)
        self.tokens_read += len(ids)
        self._kv_len += len(ids) - (self._num_transient if ends else 0)
        return span
