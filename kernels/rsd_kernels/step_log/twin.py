"""The append-only log of decided steps: all that the host learns of a running loop.

A record is LOG_HEADER words, the step's tokens and, for slots that asked for logprobs, a block of
2 + 2k words for each token: its logprob and rank, the k best ids, their logprobs (floats as bits).
"""

from __future__ import annotations

import numpy as np

from rsd_kernels.state.columns import host, number, write_at
from rsd_kernels.state.enums import LOG_HEADER, RecordKind
from rsd_kernels.state.slots import SlotState


def publish(
    state: SlotState, slot: int, *, kind: RecordKind, source: int, reward: float, finish: int
) -> None:
    """Appends what the log lacks of the step committed:length; `reward` is NaN if unscored."""
    first = max(number(state.committed, slot), number(state.told, slot))
    last = number(state.length, slot)
    num_logprobs = number(state.num_logprobs, slot)
    parts = [host(state.tokens)[slot, first:last]]
    if num_logprobs >= 0:
        parts.append(_logprob_words(state, slot, first, last, num_logprobs))
    size = LOG_HEADER + sum(len(p) for p in parts)
    reward_bits = int(np.float32(reward).view(np.int32))
    header = [
        size, slot, number(state.generation, slot), kind, source, reward_bits, finish, last - first,
        number(state.step_guesses, slot),
    ]  # fmt: skip
    head = number(state.log_head)
    words = np.concatenate([np.array(header, dtype=np.int32), *parts])
    write_at(state.log, slice(head, head + size), words)
    write_at(state.log_head, 0, head + size)
    write_at(state.log_end, 0, head + size)


def _logprob_words(state: SlotState, slot: int, first: int, last: int, k: int) -> np.ndarray:
    own = host(state.token_logprob)[slot, first:last].view(np.int32)[:, None]
    rank = host(state.token_rank)[slot, first:last, None]
    ids = host(state.top_token)[slot, first:last, :k]
    values = np.ascontiguousarray(host(state.top_logprob)[slot, first:last, :k]).view(np.int32)
    return np.concatenate([own, rank, ids, values], axis=1).ravel()
