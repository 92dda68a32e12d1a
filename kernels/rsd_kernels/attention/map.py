"""What attention needs to know of a pass: computed once, used by every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rsd_kernels.state.rows import RowBatch


@dataclass(frozen=True)
class AttentionGroup:
    """Sequences of one pass with equally many rows, attended to in one call.

    S sequences of n rows each (S == 1 or n == 1); the keys of each fill M whole pages, of which the
    L keys from `first` on are used.
    """

    rows: Tensor | slice  # [S * n] rows of the pass, a slice where they are adjacent
    num_seqs: int
    pages: Tensor  # [S * M] int64
    first: int  # keys before this one are not attended to (sliding window)
    num_keys: int  # L
    stale: Tensor | None  # [..] int64: which of the S * M * tokens_per_page keys to zero
    mask: Tensor | None  # [S, 1, n, L], added to the scores; None: nothing is masked
    causal: bool  # rows and keys are the same tokens: plain causal attention, no mask needed

    def to(self, device: torch.device) -> AttentionGroup:
        return replace(
            self,
            rows=self.rows if isinstance(self.rows, slice) else self.rows.to(device),
            pages=self.pages.to(device),
            stale=None if self.stale is None else self.stale.to(device),
            mask=None if self.mask is None else self.mask.to(device),
        )


@dataclass(frozen=True)
class AttentionScratch:
    """Where programs that share rows leave what they found, for passes that follow one another.

    Only the counters must keep their values, zeros, from pass to pass. A counter belongs to a row
    and a K/V head in passes of any shape, and a launch leaves zeros unless it fails, which ends
    the use of the device by its process.
    """

    part: Tensor  # fp32, sums of values
    part_max: Tensor  # fp32, largest scores
    part_sum: Tensor  # fp32, sums of weights
    arrived: Tensor  # int32, programs that have left theirs

    @classmethod
    def allocate(
        cls, num_parts: int, head_dim: int, num_counters: int, device: torch.device
    ) -> AttentionScratch:
        """Room for `num_parts` vectors of `head_dim`, and counters that are zero."""
        part, part_max, part_sum = (
            torch.empty(size, dtype=torch.float32, device=device)
            for size in (num_parts * head_dim, num_parts, num_parts)
        )
        arrived = torch.zeros(num_counters, dtype=torch.int32, device=device)
        return cls(part, part_max, part_sum, arrived)


@dataclass(frozen=True)
class AttentionMap:
    """The pages and keys of a pass. `groups` is for the PyTorch twin alone."""

    batch: RowBatch
    page_table: Tensor  # [B, P] int32: page of tokens [p * tokens_per_page, ..) of a slot
    tokens_per_page: int
    sliding_window: int | None  # tokens a row sees, itself included
    groups: tuple[AttentionGroup, ...]
    scratch: AttentionScratch | None = None  # for the kernel alone: see `paged_attention`
