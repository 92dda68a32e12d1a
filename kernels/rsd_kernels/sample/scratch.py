"""What the launches of a draw, and the programs of a place, leave for one another."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from torch import Tensor, float32, float64, int32

from rsd_kernels.launch import ceil_div
from rsd_kernels.state.args import bundle
from rsd_kernels.state.columns import allocate, num_bytes
from rsd_kernels.state.slots import SlotState

VOCABULARY_BLOCK = 4096  # ids of a program of the wide launches
NUM_CUTS = 16  # coarse thresholds; the last one keeps everything
MAX_CANDIDATES = 4096  # the longest list of ids that a coarse threshold may leave


M, NB, L, V = "num_places", "num_blocks", "max_len", "vocabulary"


@dataclass(frozen=True)
class SampleScratch:
    """M places, NB blocks of the vocabulary, contexts of at most L tokens, V ids.

    Two states may be sampled from at the same time on different streams: each needs its own.
    """

    block_max: Annotated[Tensor, float32, M, NB]
    block_first: Annotated[Tensor, int32, M, NB]  # the first id that has it
    block_bad: Annotated[Tensor, int32, M, NB]  # 1 if a logit is not finite
    block_sum: Annotated[Tensor, float32, M, NB]  # of exp(logit - block_max)
    cut_count: Annotated[Tensor, int32, M, NB, NUM_CUTS]  # ids kept
    cut_mass: Annotated[Tensor, float64, M, NB, NUM_CUTS]  # their exp
    block_best: Annotated[Tensor, float32, M, NB]  # largest s + noise of the block
    block_token: Annotated[Tensor, int32, M, NB]  # the id that has it
    place_max: Annotated[Tensor, float32, M]  # after penalties
    place_lse: Annotated[Tensor, float32, M]  # log of the sum of exp, before penalties
    place_raw: Annotated[Tensor, int32, M]  # 1 if `raw` has the place's logits
    place_draws: Annotated[Tensor, int32, M]  # 1 if a token is still to be drawn
    arrived: Annotated[Tensor, int32, M]  # programs of the place that have; 0 between launches
    all_arrived: Annotated[Tensor, int32, 1]  # programs of the last launch; 0 between launches
    candidate: Annotated[Tensor, int32, M, MAX_CANDIDATES]  # ids that a coarse threshold leaves
    seen: Annotated[Tensor, float32, M, L]  # the context's logits before a penalty
    raw: Annotated[Tensor, float32, M, V]  # the model's logits, where others take their place

    @classmethod
    def allocate(cls, state: SlotState, vocabulary: int, num_places: int) -> SampleScratch:
        """For passes with at most `num_places` places and `vocabulary` logits each."""
        sizes = _sizes(state.tokens.shape[1], vocabulary, num_places)
        return cls(**allocate(cls, sizes, state.tokens.device))

    @classmethod
    def num_bytes(cls, max_len: int, vocabulary: int, num_places: int) -> int:
        """What `allocate` would take."""
        return num_bytes(cls, _sizes(max_len, vocabulary, num_places))


def _sizes(max_len: int, vocabulary: int, num_places: int) -> dict[str, int]:
    return {M: num_places, NB: ceil_div(vocabulary, VOCABULARY_BLOCK), L: max_len, V: vocabulary}


ScratchArgs = bundle("ScratchArgs", *(f.name for f in fields(SampleScratch)), "num_blocks")


def scratch_args(scratch: SampleScratch) -> object:
    """The scratch as one kernel argument."""
    tensors = (getattr(scratch, f.name) for f in fields(scratch))
    return ScratchArgs(*tensors, scratch.block_max.shape[1])
