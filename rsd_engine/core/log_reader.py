"""Read the step log back into records on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rsd_engine.core.events import TokenLogprobs
from rsd_kernels.reference.step_log import RecordKind
from rsd_kernels.slot_state import LOG_HEADER, Finish, Role, SlotState


@dataclass(frozen=True)
class LogRecord:
    """One decided step as the device wrote it."""

    slot: int
    generation: int
    kind: RecordKind
    source: Role
    reward: float
    finish: Finish
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None


def drain(state: SlotState) -> list[LogRecord]:
    """Takes all records out of the log and empties it."""
    words = state.log[: int(state.log_head)].cpu().numpy()
    state.log_head.zero_()
    records, head = [], 0
    while head < len(words):
        size = int(words[head])
        records.append(_record(words[head : head + size]))
        head += size
    return records


def _record(words: np.ndarray) -> LogRecord:
    _, slot, generation, kind, source, _, finish, num_tokens = words[:LOG_HEADER].tolist()
    tokens_end = LOG_HEADER + num_tokens
    return LogRecord(
        slot=slot,
        generation=generation,
        kind=RecordKind(kind),
        source=Role(source),
        reward=float(words[5:6].view(np.float32)[0]),
        finish=Finish(finish),
        token_ids=tuple(words[LOG_HEADER:tokens_end].tolist()),
        logprobs=_logprobs(words[tokens_end:], num_tokens),
    )


def _logprobs(words: np.ndarray, num_tokens: int) -> tuple[TokenLogprobs, ...] | None:
    if num_tokens == 0 or len(words) == 0:
        return None
    blocks = words.reshape(num_tokens, -1)
    k = (blocks.shape[1] - 1) // 2
    ids = blocks[:, 1 : 1 + k]
    own = np.ascontiguousarray(blocks[:, :1]).view(np.float32)[:, 0]
    values = np.ascontiguousarray(blocks[:, 1 + k :]).view(np.float32)
    return tuple(
        TokenLogprobs(float(own[i]), dict(zip(ids[i].tolist(), values[i].tolist(), strict=True)))
        for i in range(num_tokens)
    )
