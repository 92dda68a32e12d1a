"""What the four launches of a draw leave for one another."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from torch import Tensor, float32, float64, int32

from rsd_kernels.launch import ceil_div
from rsd_kernels.state.args import bundle
from rsd_kernels.state.columns import allocate
from rsd_kernels.state.slots import SlotState

VOCABULARY_BLOCK = 4096  # ids of a program of the wide launches
NUM_CUTS = 16  # coarse thresholds; the last one keeps everything
MAX_CANDIDATES = 4096  # the longest list of ids that a coarse threshold may leave


S, NB, L, V = "num_places", "num_blocks", "max_len", "vocabulary"


@dataclass(frozen=True)
class SampleScratch:
    """S places, NB blocks of the vocabulary, contexts of at most L tokens, V ids.

    Two states may be sampled from at the same time on different streams: each needs its own.
    """

    block_max: Annotated[Tensor, float32, S, NB]
    block_first: Annotated[Tensor, int32, S, NB]  # the first id that has it
    block_bad: Annotated[Tensor, int32, S, NB]  # 1 if a logit is not finite
    block_sum: Annotated[Tensor, float32, S, NB]  # of exp(logit - block_max)
    cut_count: Annotated[Tensor, int32, S, NB, NUM_CUTS]  # ids kept
    cut_mass: Annotated[Tensor, float64, S, NB, NUM_CUTS]  # their exp
    block_best: Annotated[Tensor, float32, S, NB]  # largest s + noise of the block
    block_token: Annotated[Tensor, int32, S, NB]  # the id that has it
    seq_max: Annotated[Tensor, float32, S]  # after penalties
    seq_lse: Annotated[Tensor, float32, S]  # log of the sum of exp, before penalties
    seq_raw: Annotated[Tensor, int32, S]  # 1 if `raw` has the sequence's logits
    seq_draws: Annotated[Tensor, int32, S]  # 1 if a token is still to be drawn
    candidate: Annotated[Tensor, int32, S, MAX_CANDIDATES]  # ids that a coarse threshold leaves
    seen: Annotated[Tensor, float32, S, L]  # the context's logits before a penalty
    raw: Annotated[Tensor, float32, S, V]  # the model's logits, where others take their place

    @classmethod
    def allocate(cls, state: SlotState, vocabulary: int, num_places: int) -> SampleScratch:
        """For passes with at most `num_places` places and `vocabulary` logits each."""
        blocks = ceil_div(vocabulary, VOCABULARY_BLOCK)
        sizes = {S: num_places, NB: blocks, L: state.tokens.shape[1], V: vocabulary}
        return cls(**allocate(cls, sizes, state.tokens.device))


ScratchArgs = bundle("ScratchArgs", *(f.name for f in fields(SampleScratch)), "num_blocks")


def scratch_args(scratch: SampleScratch) -> object:
    """The scratch as one kernel argument."""
    tensors = (getattr(scratch, f.name) for f in fields(scratch))
    return ScratchArgs(*tensors, scratch.block_max.shape[1])
