"""The append-only log of decided steps: all that the host ever learns of a running loop.

A record is LOG_HEADER words, the step's tokens and, for slots that asked, a block per token of
1 + 2k words: its logprob, then the k best ids and their logprobs (floats by their bits).
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from rsd_kernels.slot_state import LOG_HEADER, SlotState


class RecordKind(IntEnum):
    """What happened to the tokens of a record."""

    KEPT = 1
    REJECTED = 2
    DROPPED = 3  # the output ends without them


def publish(
    state: SlotState, slot: int, *, kind: RecordKind, source: int, reward: float, finish: int
) -> None:
    """Appends the step committed:length of a slot. Words: size, slot, generation, kind, source,
    reward (float bits; NaN if unscored), finish, number of tokens."""
    first, last = int(state.committed[slot]), int(state.length[slot])
    num_logprobs = int(state.num_logprobs[slot])
    parts = [state.tokens[slot, first:last]]
    if num_logprobs >= 0:
        parts.append(_logprob_words(state, slot, first, last, num_logprobs))
    size = LOG_HEADER + sum(len(p) for p in parts)
    reward_bits = int(torch.tensor(reward, dtype=torch.float32).view(torch.int32))
    header = [
        size, slot, int(state.generation[slot]), kind, source, reward_bits, finish, last - first,
    ]  # fmt: skip
    words = torch.cat([torch.tensor(header, dtype=torch.int32, device=state.log.device), *parts])
    head = int(state.log_head)
    state.log[head : head + size] = words
    state.log_head.fill_(head + size)


def _logprob_words(state: SlotState, slot: int, first: int, last: int, k: int) -> Tensor:
    own = state.token_logprob[slot, first:last].view(torch.int32)[:, None]
    ids = state.top_token[slot, first:last, :k]
    values = state.top_logprob[slot, first:last, :k].contiguous().view(torch.int32)
    return torch.cat([own, ids, values], dim=1).flatten()
