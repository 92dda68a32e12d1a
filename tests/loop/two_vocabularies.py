"""The toy with a target of another vocabulary: the letters in reverse, and two tokens of two.

So the same text has other ids for it, and often fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from rsd_engine.core.host_steps import HostBridge
from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.writer_contexts import Translate
from rsd_kernels.state.enums import MAX_CUT_TOKENS, Finish, Mode, Role
from rsd_kernels.state.tables import StepTables
from tests.loop.toy import (
    CHARS,
    NEWLINE,
    NUM_IDS,
    SEPARATOR,
    around_steps,
    decode,
    encode,
    toy_tables,
)

TOKENS = (*reversed(CHARS), "ab", "\n\n")
TARGET_EOS = len(TOKENS)
NUM_TARGET_IDS = TARGET_EOS + 1
MAX_LEN = 40


@dataclass(frozen=True)
class Vocabularies:
    """What a core needs to know of them, for each writer."""

    tables: Mapping[Role, StepTables]
    num_ids: Mapping[Role, int]
    bridges: Mapping[Role, HostBridge]
    translate: Mapping[Role, Translate]


def encode_target(text: str) -> tuple[int, ...]:
    """The longest token first."""
    ids, at = list[int](), 0
    while at < len(text):
        pair = text[at : at + 2]
        piece = pair if pair in TOKENS else text[at]
        ids.append(TARGET_EOS if piece == "$" else TOKENS.index(piece))
        at += len(piece)
    return tuple(ids)


def decode_target(ids: Sequence[int]) -> str:
    return "".join("$" if i == TARGET_EOS else TOKENS[i] for i in ids)


def decoder_of(role: Role) -> Callable[[Sequence[int]], str]:
    """How to read ids of a writer."""
    return decode_target if role == Role.TARGET else decode


def by_text(step: list[int], delimiter_bytes: int, finish: Finish, is_first: bool) -> list[int]:
    """The bridge as the host does it, by way of text; one token is one byte."""
    kept = [token for token in step if token <= NEWLINE]
    return [*kept[: len(kept) - delimiter_bytes], SEPARATOR]


def two_vocabularies(*, around: bool = False) -> Vocabularies:
    """around: with the ids of `around_steps` in the PRM's context."""
    tables = {Role.DRAFT: toy_tables(), Role.TARGET: _target_tables()}
    if around:
        tables = {role: around_steps(table) for role, table in tables.items()}
    behind = encode("ij") if around else ()
    return Vocabularies(
        tables=tables,
        num_ids={Role.DRAFT: NUM_IDS, Role.TARGET: NUM_TARGET_IDS},
        bridges={
            Role.DRAFT: lambda ids, *end: [*by_text(ids, *end), *behind],
            Role.TARGET: lambda ids, *end: [
                *by_text(list(encode(decode_target(ids))), *end),
                *behind,
            ],
        },
        translate={
            Role.DRAFT: lambda ids: list(encode_target(decode(ids))),
            Role.TARGET: lambda ids: list(encode(decode_target(ids))),
        },
    )


def for_two_vocabularies(request: SlotRequest) -> SlotRequest:
    """A toy request with the target's view of it; the target's alone in its mode."""
    ours = replace(request, length_limit=_capped(request.length_limit))
    prompt = encode_target(decode(request.prompt))
    shift = len(prompt) - len(request.prompt)
    theirs = replace(
        request,
        prompt=prompt,
        length_limit=_capped(request.length_limit + shift),
        min_length=request.min_length + shift,
        stop_tokens=(TARGET_EOS,),
    )
    if request.mode == Mode.RSD:
        return replace(request, target=theirs)
    return theirs if request.mode == Mode.TARGET else ours


def _capped(length: int) -> int:
    return min(length, MAX_LEN - MAX_CUT_TOKENS)


def _target_tables() -> StepTables:
    data = [token.encode() for token in TOKENS] + [b""]
    starts = [sum(map(len, data[:i])) for i in range(len(data) + 1)]
    return replace(
        toy_tables(),
        token_byte=torch.tensor(list(b"".join(data)), dtype=torch.uint8),
        token_start=torch.tensor(starts, dtype=torch.int32),
        prefix_entry=torch.full((NUM_TARGET_IDS,), -1, dtype=torch.int32),
        prm_token=torch.full((NUM_TARGET_IDS,), -1, dtype=torch.int32),
    )
