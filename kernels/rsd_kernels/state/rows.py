"""The packed rows of one pass: what every forward reads, in tensors that never move.

`schedule` writes a `RowBatch` on the device; a forward reads it. The rows of one slot are adjacent
and in order of position, so they form one sequence of the pass.

A graph reads a fixed number of rows, so whatever lies past the rows of a pass is padding that
changes nothing: rows with page -1, whose K and V are not stored, and sequences without rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowBatch:
    """N packed rows (new tokens of any slots) in S sequences (at most one a slot). All int32."""

    token: Tensor  # [N] token id to read
    slot: Tensor  # [N] slot the row belongs to
    position: Tensor  # [N] position in the slot's context, 0-based (rope, causal mask)
    page: Tensor  # [N] page that takes this row's K and V; -1: none, the row is padding
    offset: Tensor  # [N] token index inside that page
    seq_slot: Tensor  # [S] slot of sequence s
    seq_start: Tensor  # [S + 1] first row of sequence s; rows seq_start[s]:seq_start[s + 1]
    seq_kv_len: Tensor  # [S] tokens the sequence's last row attends to: old ones and new rows
    seq_complete: Tensor  # [S] 1 if this pass reads the slot's last pending token

    @classmethod
    def allocate(cls, max_rows: int, max_seqs: int, device: torch.device) -> RowBatch:
        """All padding."""
        batch = cls(
            **{
                name: torch.zeros(size, dtype=torch.int32, device=device)
                for name, size in _field_sizes(max_rows, max_seqs).items()
            }
        )
        batch.page.fill_(-1)
        return batch

    @property
    def num_rows(self) -> int:
        return self.token.shape[0]

    @property
    def num_seqs(self) -> int:
        return self.seq_slot.shape[0]

    def narrow(self, num_rows: int, num_seqs: int) -> RowBatch:
        """Views of the first `num_rows` rows and `num_seqs` sequences."""
        sizes = _field_sizes(num_rows, num_seqs)
        return RowBatch(**{name: getattr(self, name)[:size] for name, size in sizes.items()})


def _field_sizes(num_rows: int, num_seqs: int) -> dict[str, int]:
    by_row = dict.fromkeys(("token", "slot", "position", "page", "offset"), num_rows)
    by_seq = dict.fromkeys(("seq_slot", "seq_kv_len", "seq_complete"), num_seqs)
    return {**by_row, **by_seq, "seq_start": num_seqs + 1}
