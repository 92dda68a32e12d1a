"""The packed rows of one pass: what every forward reads, in tensors that never move.

`schedule` writes a `RowBatch` on the device; a forward reads it. The rows of one slot are adjacent
and in order of position, so they form one sequence of the pass.

A writer's pass samples a token at each *place*: behind the last row of a slot's context and, where
guesses are verified, behind every guess. Row p of the logits is that of place p.

A graph reads a fixed number of rows, so whatever lies past the rows of a pass is padding that
changes nothing: rows with page -1, whose K and V are not stored, sequences without rows, places
behind no row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowBatch:
    """N packed rows (new tokens of any slots) in S sequences (at most one a slot), with M places.

    All are int32.
    """

    token: Tensor  # [N] token id to read
    slot: Tensor  # [N] slot the row belongs to
    position: Tensor  # [N] position in the slot's context, 0-based (rope, causal mask)
    page: Tensor  # [N] page that takes this row's K and V; -1: none, the row is padding
    offset: Tensor  # [N] token index inside that page
    seq_slot: Tensor  # [S] slot of sequence s
    seq_start: Tensor  # [S + 1] first row of sequence s; rows seq_start[s]:seq_start[s + 1]
    seq_kv_len: Tensor  # [S] tokens the sequence's last row attends to: old ones and new rows
    seq_complete: Tensor  # [S] 1 if this pass reads the slot's last pending token
    seq_place: Tensor  # [S + 1] first place of sequence s; none of one that is not complete
    place_row_end: Tensor  # [M] the row before place p, plus 1; 0: there is no such place
    place_slot: Tensor  # [M] slot of the place
    place_position: Tensor  # [M] position in the slot's context of the token to be sampled
    place_token: Tensor  # [M] that token once it is sampled, or NOT_FINITE

    @classmethod
    def allocate(
        cls, max_rows: int, max_seqs: int, device: torch.device, max_places: int | None = None
    ) -> RowBatch:
        """All padding. max_places: as many as sequences, if not given."""
        sizes = _field_sizes(max_rows, max_seqs, max_seqs if max_places is None else max_places)
        batch = cls(
            **{
                name: torch.zeros(size, dtype=torch.int32, device=device)
                for name, size in sizes.items()
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

    @property
    def num_places(self) -> int:
        return self.place_slot.shape[0]

    def narrow(self, num_rows: int, num_seqs: int, num_places: int) -> RowBatch:
        """Views of the first `num_rows` rows, `num_seqs` sequences and `num_places` places."""
        sizes = _field_sizes(num_rows, num_seqs, num_places)
        return RowBatch(**{name: getattr(self, name)[:size] for name, size in sizes.items()})


def _field_sizes(num_rows: int, num_seqs: int, num_places: int) -> dict[str, int]:
    by_row = dict.fromkeys(("token", "slot", "position", "page", "offset"), num_rows)
    by_seq = dict.fromkeys(("seq_slot", "seq_kv_len", "seq_complete"), num_seqs)
    starts = dict.fromkeys(("seq_start", "seq_place"), num_seqs + 1)
    places = ("place_row_end", "place_slot", "place_position", "place_token")
    return {**by_row, **by_seq, **starts, **dict.fromkeys(places, num_places)}
