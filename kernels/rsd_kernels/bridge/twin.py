"""Write a finished step into the PRM's context: strip the delimiter, add the separator.

Runs at the end of every step, the draft's and the target's, when the PRM shares the base
vocabulary; only the tokens around the delimiter have to be tokenised again. A step with a token
that the PRM lacks waits for the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_kernels.bridge.merge_twin import retokenise_end
from rsd_kernels.state.columns import host
from rsd_kernels.state.enums import Finish, Mode, Phase
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import BY_TEXT, MergeTables, StepTables


def bridge(
    state: SlotState, tables: StepTables, merges: MergeTables, scratch: Tensor | None = None
) -> None:
    """Extends `prm_tokens` by the step that ended in each RSD slot; see `write_prm_step`.

    scratch: for the kernel alone.
    """
    for b in _ended_rsd_slots(state):
        step = state.tokens[b, int(state.committed[b]) : int(state.length[b])].tolist()
        if drops_stop_token(int(state.finish[b]), int(state.match_bytes[b]), tables):
            step.pop()
        kept: list[int] | None = step + tables.separator.tolist()
        if not tables.as_written:
            kept = prm_step_tokens(step, int(state.match_bytes[b]), tables, merges)
        if kept is None:
            state.phase[b] = Phase.WAIT_HOST
        else:
            write_prm_step(state, b, kept, tables)


def drops_stop_token(finish: int, match_bytes: int, tables: StepTables) -> bool:
    """Whether the stop token that ends a step is no part of it for the PRM.

    One that completes a delimiter is dropped with the delimiter. Where the PRM reads steps as they
    were written, it sees the stop token unless something follows.
    """
    if finish != Finish.STOP_TOKEN:
        return False
    return len(tables.separator) > 0 if tables.as_written else not match_bytes


def write_prm_step(state: SlotState, slot: int, tokens: list[int], tables: StepTables) -> None:
    """Extends the PRM's context by a step with its separator; sets `prm_length` and `prm_keep`.

    If they do not fit, no more steps are scored: the slot goes on in its `overflow_mode`, or, if
    that is RSD, `finish` becomes PRM_FULL.
    """
    if int(state.num_steps[slot]):
        tokens = [*tables.before_step.tolist(), *tokens]
    start = int(state.prm_committed[slot])
    stop = start + len(tokens)
    if stop > state.prm_tokens.shape[1]:
        state.mode[slot] = state.overflow_mode[slot]
        if int(state.mode[slot]) == Mode.RSD:
            state.finish[slot] = Finish.PRM_FULL
        return
    state.prm_tokens[slot, start:stop] = torch.tensor(tokens, dtype=torch.int32)
    state.prm_length[slot] = stop
    state.prm_keep[slot] = stop - tables.num_transient


def wait_for_host(state: SlotState) -> None:
    """Runs in place of `bridge` when the tokenizers differ: the host then bridges through text."""
    for b in _ended_rsd_slots(state):
        state.phase[b] = Phase.WAIT_HOST


def prm_step_tokens(
    step: list[int], delimiter_bytes: int, tables: StepTables, merges: MergeTables
) -> list[int] | None:
    """The PRM's tokens of a step, separator last; its delimiter has `delimiter_bytes` bytes.

    None if one of them has to reach the PRM as text. From the last token back, tokens inside the
    delimiter are dropped; the token that it begins in is replaced by its prefix, and the word it
    belongs to is tokenised again.
    """
    kept = list(step)
    remaining = delimiter_bytes
    while remaining and kept:
        token = kept.pop()
        start, end = tables.token_start[token : token + 2].tolist()
        if end - start > remaining:
            kept += _prefix(token, end - start - remaining, tables)
            kept = retokenise_end(kept, tables, merges)
        remaining -= min(remaining, end - start)
    mapped = tables.prm_token[torch.tensor(kept, dtype=torch.long)].tolist()
    if BY_TEXT in mapped:
        return None
    return [t for t in mapped if t >= 0] + tables.separator.tolist()


def _prefix(token: int, num_bytes: int, tables: StepTables) -> list[int]:
    entry = int(tables.prefix_entry[token])
    if entry < 0:
        return [token]
    first, last = tables.prefix_start[entry + num_bytes - 1 : entry + num_bytes + 1].tolist()
    return tables.prefix_token[first:last].tolist() or [token]


def _ended_rsd_slots(state: SlotState) -> list[int]:
    columns = (state.ended, state.mode, state.finish)
    ended, mode, finish = (host(column).tolist() for column in columns)
    return [
        b
        for b in range(len(ended))
        if ended[b] and mode[b] == Mode.RSD and finish[b] != Finish.ERROR
    ]
