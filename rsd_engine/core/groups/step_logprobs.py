"""How likely a model finds steps that others have written, between two launches of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from rsd_engine.core.context_rows import rows_of, take_pages_for
from rsd_engine.loop.rsd import Loop
from rsd_kernels.state.enums import Role
from rsd_kernels.state.pages import own_page

MakeRoom = Callable[[int, int], None]
"""(pages, slot): frees that many; only the slot may keep its own."""


def step_logprobs(loop: Loop, role: Role, slots: Sequence[int], make_room: MakeRoom) -> list[float]:
    """The log-probability of the step that stands in each slot past `committed`.

    The model reads what it has not read yet, up to the step's last token but one; its K and V stay.

    Args:
        loop: not running.
        role: a writer.
        slots: whose steps.
        make_room: is called where pages are short.

    Returns:
        For each slot the sum over the tokens of its step, in float64, of the logarithm of their
        probability, before temperature.
    """
    return [_step_logprob(loop, role, slot, make_room) for slot in slots]


def _step_logprob(loop: Loop, role: Role, slot: int, make_room: MakeRoom) -> float:
    state = loop.state
    first, last = int(state.committed[slot]), int(state.length[slot])
    start = min(int(state.kv_len[role, slot]), first - 1)
    start = own_page(state, role, slot, start, loop.tokens_per_page[role])
    take_pages_for(loop, slot, role, last - 1, make_room)
    size, total = min(loop.logits[role].shape[0], loop.batch.num_rows), 0.0
    for begin in range(start, last - 1, size):
        end = min(begin + size, last - 1)
        loop.forwards[role](rows_of(loop, slot, role, begin, end))
        skipped = max(first - 1 - begin, 0)  # rows of tokens before the step
        if begin + skipped < end:
            tokens = state.tokens[slot, begin + skipped + 1 : end + 1].long()
            total += _sum(loop.logits[role][skipped : end - begin], tokens)
        state.passes[role, slot] += 1
    state.tokens_read[role, slot] += last - 1 - start
    state.kv_len[role, slot] = max(int(state.kv_len[role, slot]), last - 1)
    return total


def _sum(logits: Tensor, tokens: Tensor) -> float:
    chosen = logits.double().log_softmax(-1).gather(1, tokens[:, None])
    return float(chosen.sum())
