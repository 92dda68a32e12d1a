"""The packed rows of one pass: what every forward reads, in tensors that never move.

`schedule` writes a `RowBatch` on the device; a forward reads it. The rows of one slot are adjacent
and in order of position, so they form one sequence of the pass.

A graph reads a fixed number of rows, so what lies past the rows of a pass is padding that changes
nothing: a page of -1, which takes no K and V, and sequences without rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowBatch:
    """N packed rows (new tokens of any slots) in S sequences (one a slot). All int32."""

    token: Tensor  # [N] token id to read
    slot: Tensor  # [N] slot the row belongs to
    position: Tensor  # [N] position in the slot's row, 0-based (rope, causal mask)
    page: Tensor  # [N] page that takes this row's K and V; -1: none, the row is padding
    offset: Tensor  # [N] token index inside that page
    seq_slot: Tensor  # [S] slot of sequence s
    seq_start: Tensor  # [S + 1] first row of sequence s; rows seq_start[s]:seq_start[s + 1]
    seq_kv_len: Tensor  # [S] tokens the sequence attends to at its last row (history + new rows)
    seq_complete: Tensor  # [S] 1 if this pass reads the last pending row of the slot

    @classmethod
    def allocate(cls, max_rows: int, max_seqs: int, device: torch.device) -> RowBatch:
        def zeros(n: int) -> Tensor:
            return torch.zeros(n, dtype=torch.int32, device=device)

        return cls(
            token=zeros(max_rows),
            slot=zeros(max_rows),
            position=zeros(max_rows),
            page=zeros(max_rows).fill_(-1),
            offset=zeros(max_rows),
            seq_slot=zeros(max_seqs),
            seq_start=zeros(max_seqs + 1),
            seq_kv_len=zeros(max_seqs),
            seq_complete=zeros(max_seqs),
        )

    @property
    def num_rows(self) -> int:
        return self.token.shape[0]

    @property
    def num_seqs(self) -> int:
        return self.seq_slot.shape[0]

    def narrow(self, num_rows: int, num_seqs: int) -> RowBatch:
        """Views of the first `num_rows` rows and `num_seqs` sequences."""
        return RowBatch(
            token=self.token[:num_rows],
            slot=self.slot[:num_rows],
            position=self.position[:num_rows],
            page=self.page[:num_rows],
            offset=self.offset[:num_rows],
            seq_slot=self.seq_slot[:num_seqs],
            seq_start=self.seq_start[: num_seqs + 1],
            seq_kv_len=self.seq_kv_len[:num_seqs],
            seq_complete=self.seq_complete[:num_seqs],
        )
