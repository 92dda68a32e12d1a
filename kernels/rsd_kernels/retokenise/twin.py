"""Tokenise the end of a kept step again, in the context that draft and target read.

A model writes a step token by token: a blank line as two tokens, or a full stop and a blank line.
Code that passes text from model to model, as the RSD authors' does, reads the tokens that the
tokenizer makes of that text. What was told of the step stays as it was written.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rsd_kernels.bridge.merge_twin import merge_bytes
from rsd_kernels.state.columns import host, number, write_at
from rsd_kernels.state.enums import Mode, Phase, Role
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import (
    ENDS_LINE,
    JOINS_NEXT,
    JOINS_PREVIOUS,
    MAX_WORD_BYTES,
    STARTS_LINE,
    UNCERTAIN,
    UNSETTLES,
    MergeTables,
    StepTables,
)

_WRITERS = (Role.DRAFT, Role.TARGET)


def retokenise(
    state: SlotState, tables: StepTables, merges: MergeTables | None, words: Tensor | None = None
) -> None:
    """Replaces the end of the step that each RSD slot has just kept by the tokens of its text.

    A step whose end these tables cannot settle waits for the host (`Phase.WAIT_HOST`).

    Args:
        state: of the batch.
        tables: bytes of the tokens.
        merges: flags and merges of the writers' tokenizer; None: every step waits for the host.
        words: for the kernel alone.
    """
    for b in _just_kept(state):
        first, length = number(state.kept_from, b), number(state.length, b)
        context = host(state.tokens)[b, :length]  # a view: only its last word is read
        found = None if merges is None else _end_word(context, first, tables, merges)
        if found is None:
            write_at(state.phase, b, Phase.WAIT_HOST)
            continue
        begin, data = found
        tokens = context[begin:].tolist()
        if len(tokens) > 1:
            assert merges is not None
            tokens = merge_bytes(data, merges)
        replace_end(state, b, begin, tokens)


def replace_end(state: SlotState, slot: int, begin: int, tokens: list[int]) -> None:
    """Puts `tokens` in place of the context's tokens from `begin` on, at the end of a kept step.

    K and V from the first token that differs on count no more, so both writers read these tokens
    when their turn comes. As many tokens as before may still be written, unless the context has
    grown past what was written; without room for such growth nothing changes.
    """
    write_at(state.kept_from, slot, -1)
    length = number(state.length, slot)
    before = host(state.tokens)[slot, begin:length].tolist()
    same = _same(before, tokens)
    taken, saved = number(state.shortened, slot), len(before) - len(tokens)
    fewer = max(taken + saved, 0) - max(taken, 0)
    limit = number(state.length_limit, slot) - fewer
    if same == len(before) == len(tokens) or length - saved >= limit:
        return
    begin += same
    length -= saved
    write_at(state.tokens, (slot, slice(begin, length)), tokens[same:])
    write_at(state.length, slot, length)
    write_at(state.committed, slot, length)
    write_at(state.length_limit, slot, limit)
    write_at(state.min_length, slot, number(state.min_length, slot) - saved)
    write_at(state.shortened, slot, taken + saved)
    write_at(state.prompt_length, slot, min(number(state.prompt_length, slot), begin))
    for role in _WRITERS:
        read = number(state.kv_len, (role, slot))
        write_at(state.kv_len, (role, slot), min(read, begin))


def _just_kept(state: SlotState) -> list[int]:
    columns = (state.phase, state.mode, state.kept_from, state.length, state.committed)
    phase, mode, kept_from, length, committed = (host(column) for column in columns)
    begins = (phase == Phase.DRAFT) | (phase == Phase.CHOICE)
    kept = begins & (mode == Mode.RSD) & (kept_from >= 0) & (length == committed)
    return [int(b) for b in kept.nonzero()[0]]


def _end_word(
    context: np.ndarray, first: int, tables: StepTables, merges: MergeTables
) -> tuple[int, list[int]] | None:
    """Where the context's last word begins, and its bytes; None if the tables cannot tell.

    It is empty if the context does not end in a newline, as after a step that reached its limit.

    first: where the step begins. Its first token may change the tokens of the delimiter before it,
    unless that delimiter belongs to the last word.
    """
    begin, after, size = len(context), 0, 0
    while begin > 0:
        flags = int(merges.flags[context[begin - 1]])
        if not flags & JOINS_NEXT or (begin == len(context) and not flags & ENDS_LINE):
            break
        if begin < len(context):
            if (flags | after) & UNCERTAIN:
                return None
            if not after & (STARTS_LINE if flags & ENDS_LINE else JOINS_PREVIOUS):
                break
        begin -= 1
        start, end = tables.token_start[context[begin] : context[begin] + 2].tolist()
        size += end - start
        if size > MAX_WORD_BYTES:
            return None
        after = flags
    if begin >= first and int(merges.flags[context[first]]) & UNSETTLES:
        return None
    data: list[int] = []
    for token in context[begin:].tolist():
        start, end = tables.token_start[token : token + 2].tolist()
        data += tables.token_byte[start:end].tolist()
    return begin, data


def _same(before: list[int], after: list[int]) -> int:
    """How many tokens at the beginning are the same."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
