"""How many KV pages a request holds, by the length of its output."""

from __future__ import annotations

from collections.abc import Mapping

from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.writer_contexts import longest_context
from rsd_engine.loop.rsd import Loop
from rsd_kernels.state.enums import NUM_ROLES, Mode, Role, Speculation
from rsd_kernels.state.slots import SlotState, pages_for

_ROLES_OF_MODE = {
    Mode.RSD: (Role.DRAFT, Role.TARGET, Role.PRM),
    Mode.DRAFT: (Role.DRAFT,),
    Mode.TARGET: (Role.TARGET,),
}


def roles_of(request: SlotRequest) -> tuple[Role, ...]:
    """Whose passes a request may take part in."""
    if request.mode == Mode.TARGET and request.speculation & Speculation.DRAFT:
        return (Role.DRAFT, Role.TARGET)
    return _ROLES_OF_MODE[request.mode]


def pages_when_full(request: SlotRequest, loop: Loop) -> int:
    """Pages of all its roles at the end of its output, however long that becomes.

    A translated step may be longer than the step as it was written, so where draft and target have
    vocabularies of their own, every context may become full.
    """
    if request.target is None:
        return _pages_at(request, request.max_tokens, loop)
    lengths = dict.fromkeys(Role, longest_context(loop.state, request))
    lengths[Role.PRM] = loop.state.prm_tokens.shape[1]
    return _pages(request, lengths, loop)


def pages_for_longest_step(request: SlotRequest, output: int, loop: Loop) -> int:
    """Pages of all its roles when one step more, as long as it may be, follows `output` tokens."""
    longest = min(request.max_tokens, output + request.max_step_tokens)
    return _pages_at(request, longest, loop)


def _pages_at(request: SlotRequest, output: int, loop: Loop) -> int:
    """Pages of all its roles when its output has `output` tokens, in the context of each writer."""
    target, full = request.target or request, loop.state.tokens.shape[1]
    added = min(output, request.max_steps) * request.prm_step_ids + request.prm_transient
    lengths = {
        Role.DRAFT: min(len(request.prompt) + output, full),
        Role.TARGET: min(len(target.prompt) + output, full),
        Role.PRM: min(len(request.prm_prompt) + output + added, loop.state.prm_tokens.shape[1]),
    }
    return _pages(request, lengths, loop)


def _pages(request: SlotRequest, lengths: Mapping[Role, int], loop: Loop) -> int:
    """If the PRM's passes use a writer's pages, its context has the longer of the two."""
    longest = {role: lengths[role] for role in roles_of(request)}
    if Role.PRM in longest:
        prm_length = longest.pop(Role.PRM)
        longest[loop.prm_kv] = max(prm_length, longest.get(loop.prm_kv, 0))
    return sum(
        pages_for(tokens, loop.tokens_per_page[role])
        for role, tokens in longest.items()
        if role in loop.forwards  # not on a server
    )


def is_stuck(state: SlotState) -> bool:
    """Whether the last launch found a slot that lacks pages and no slot that could go on.

    A launch that ended at its tick cap proves nothing: others may go on in the next one.
    """
    went_on = int(state.pass_role) != NUM_ROLES or int(state.tick) > int(state.tick_cap)
    return not went_on and bool(state.lacks_pages.any())
