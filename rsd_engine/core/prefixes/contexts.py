"""What the roles of running requests have to read, as it stands between two launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.writer_contexts import WriterContexts
from rsd_engine.loop.rsd import Loop
from rsd_kernels.state.columns import host
from rsd_kernels.state.enums import Mode, Phase, Role


class Context(NamedTuple):
    """The tokens of one role."""

    ids: np.ndarray
    final: int  # of its tokens: those that stay, whatever becomes of the step being written
    most_found: int  # tokens that need not be read: a row must be left to go on from


def prompt_of(request: SlotRequest, role: Role) -> Context:
    """Of a request that has not begun."""
    target = request.target or request
    prompts = {
        Role.DRAFT: request.prompt, Role.TARGET: target.prompt, Role.PRM: request.prm_prompt
    }  # fmt: skip
    ids = np.array(prompts[role], dtype=np.int32)
    return Context(ids, len(ids), len(ids) - 1)


@dataclass(frozen=True)
class HeldContexts:
    """The columns of the state that this takes: one copy each for all slots, none on a CPU."""

    tokens: np.ndarray
    length: np.ndarray
    committed: np.ndarray
    pending_from: np.ndarray  # where the tokens of a step's end may change yet; -1: nowhere
    prm_tokens: np.ndarray
    prm_length: np.ndarray
    prm_committed: np.ndarray
    kv_len: np.ndarray
    num_pages: np.ndarray
    page_table: np.ndarray
    page_owners: np.ndarray
    page_stamp: np.ndarray

    @classmethod
    def of(cls, loop: Loop) -> HeldContexts:
        """As they are now. On a CPU they are views, elsewhere they do not follow the state."""
        state = loop.state
        length, prm_length = host(state.length), host(state.prm_length)
        num_pages = host(state.num_pages)
        return cls(
            tokens=host(state.tokens[:, : length.max()]),
            length=length,
            committed=host(state.committed),
            pending_from=_pending_from(loop),
            prm_tokens=host(state.prm_tokens[:, : prm_length.max()]),
            prm_length=prm_length,
            prm_committed=host(state.prm_committed),
            kv_len=host(state.kv_len),
            num_pages=num_pages,
            page_table=host(state.page_table[:, :, : num_pages.max()]),
            page_owners=host(state.page_owners),
            page_stamp=host(state.page_stamp),
        )

    def context(self, slot: int, role: Role, writers: WriterContexts | None) -> Context:
        """Of a role of a slot; `writers`: if draft and target have a context each."""
        if role == Role.PRM:
            length, final = int(self.prm_length[slot]), int(self.prm_committed[slot])
            return Context(self.prm_tokens[slot, :length], final, min(final, length - 1))
        if writers:
            ids = np.array(writers.ids(role), dtype=np.int32)
            return Context(ids, len(ids), len(ids) - 1)
        length, final = int(self.length[slot]), int(self.committed[slot])
        if self.pending_from[slot] >= 0:
            final = min(final, int(self.pending_from[slot]))
        return Context(self.tokens[slot, :length], final, min(final, length - 1))


def _pending_from(loop: Loop) -> np.ndarray:
    """Only an output that goes on, with steps that are scored, is tokenised again."""
    phase, mode, kept_from = (
        host(column) for column in (loop.state.phase, loop.state.mode, loop.state.kept_from)
    )
    pending = (loop.ends is not None) & (mode == Mode.RSD) & (phase != Phase.DONE)
    return np.where(pending, kept_from, -1)
