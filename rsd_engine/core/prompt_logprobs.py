"""Log-probabilities of a prompt's tokens, between two launches of the loop.

A forward leaves the logits of each place. Here every row is a sequence of its own, with a place; K
and V of all rows are stored before any of them attends, so nothing else changes. They stay
in the slot's pages, and the loop goes on from there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rsd_engine.core.context_rows import rows_of, take_pages_for
from rsd_engine.core.events import TokenLogprobs
from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.writer_contexts import WriterContexts
from rsd_engine.loop.rsd import Loop
from rsd_kernels.state.enums import Mode, Role


def read_prompt(
    loop: Loop, slot: int, request: SlotRequest, contexts: WriterContexts | None
) -> tuple[Role, tuple[TokenLogprobs, ...]]:
    """Lets a model read the prompt of a slot that was just filled, up to its last token.

    Args:
        loop: not running; free pages for the prompt are the caller's care.
        slot: of the request.
        request: says how many of the most likely tokens to report at each position.
        contexts: if its writers have one each.

    Returns:
        The model, a draft only where it writes alone. For every token of the prompt but the first
        its log-probability, after those before it.
    """
    role = Role.DRAFT if request.mode == Mode.DRAFT else Role.TARGET
    if contexts is None:
        return role, _read(loop, slot, role, request.prompt_logprobs)
    contexts.enter(loop.state, slot, role)
    found = _read(loop, slot, role, request.prompt_logprobs)
    contexts.enter(loop.state, slot, Role.DRAFT)
    return role, found


def _read(loop: Loop, slot: int, role: Role, count: int) -> tuple[TokenLogprobs, ...]:
    state, found = loop.state, list[TokenLogprobs]()
    last = int(state.prompt_length[slot]) - 1
    take_pages_for(loop, slot, role, last)
    tokens = state.tokens[slot, 1 : last + 1].long()
    logits = loop.logits[role]
    step = min(logits.shape[0], loop.batch.num_rows)
    for start in range(0, last, step):
        stop = min(start + step, last)
        loop.forwards[role](rows_of(loop, slot, role, start, stop))
        found += _logprobs(logits[: stop - start], tokens[start:stop], count)
        state.passes[role, slot] += 1
    state.kv_len[role, slot] = last
    state.tokens_read[role, slot] += last
    return tuple(found)


def _logprobs(logits: Tensor, tokens: Tensor, count: int) -> list[TokenLogprobs]:
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, tokens[:, None])
    ids = torch.arange(logits.shape[1], device=logits.device)
    before = (logprobs > own) | ((logprobs == own) & (ids < tokens[:, None]))
    values, best = logprobs.topk(min(count, logits.shape[1]))
    columns = (own[:, 0], before.sum(1) + 1, best, values)
    return [
        TokenLogprobs(own, rank, dict(zip(best, values, strict=True)))
        for own, rank, best, values in zip(*(c.tolist() for c in columns), strict=True)
    ]
