"""What the four launches of a draw leave for one another."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rsd_kernels.launch import ceil_div
from rsd_kernels.state.args import bundle
from rsd_kernels.state.slots import SlotState

VOCABULARY_BLOCK = 4096  # ids a program of the wide launches looks at
NUM_CUTS = 16  # coarse thresholds; the last keeps everything
MAX_CANDIDATES = 4096  # ids that may be left over by a coarse threshold


@dataclass(frozen=True)
class SampleScratch:
    """S sequences, NB blocks of the vocabulary.

    Two states may be sampled from at the same time on different streams: each needs its own.
    """

    block_max: Tensor  # [S, NB] float32
    block_first: Tensor  # [S, NB] int32: the first id that has it
    block_bad: Tensor  # [S, NB] int32: 1 if a logit is not finite
    block_sum: Tensor  # [S, NB] float32: of exp(logit - block_max)
    cut_count: Tensor  # [S, NB, NUM_CUTS] int32: ids that stay
    cut_mass: Tensor  # [S, NB, NUM_CUTS] float64: their exp
    seq_max: Tensor  # [S] float32: after penalties
    seq_lse: Tensor  # [S] float32: log of the sum of exp, before penalties
    seq_draws: Tensor  # [S] int32: 1 if a token is still to be drawn
    candidate: Tensor  # [S, MAX_CANDIDATES] int32: ids that a coarse threshold leaves
    seen: Tensor  # [S, L] float32: logits of the context's tokens before the repetition penalty

    @classmethod
    def allocate(cls, state: SlotState, vocabulary: int) -> SampleScratch:
        """For a sequence in every slot and `vocabulary` logits each."""
        num_slots, max_len = state.tokens.shape
        blocks = ceil_div(vocabulary, VOCABULARY_BLOCK)

        def empty(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(num_slots, *shape, dtype=dtype, device=state.tokens.device)

        return cls(
            block_max=empty(blocks, dtype=torch.float32),
            block_first=empty(blocks, dtype=torch.int32),
            block_bad=empty(blocks, dtype=torch.int32),
            block_sum=empty(blocks, dtype=torch.float32),
            cut_count=empty(blocks, NUM_CUTS, dtype=torch.int32),
            cut_mass=empty(blocks, NUM_CUTS, dtype=torch.float64),
            seq_max=empty(dtype=torch.float32),
            seq_lse=empty(dtype=torch.float32),
            seq_draws=empty(dtype=torch.int32),
            candidate=empty(MAX_CANDIDATES, dtype=torch.int32),
            seen=empty(max_len, dtype=torch.float32),
        )


ScratchArgs = bundle("ScratchArgs", *(f.name for f in fields(SampleScratch)), "num_blocks")


def scratch_args(scratch: SampleScratch) -> object:
    """As one kernel argument."""
    tensors = (getattr(scratch, f.name) for f in fields(scratch))
    return ScratchArgs(*tensors, scratch.block_max.shape[1])
