"""How many KV pages a request holds, by the length of its context."""

from __future__ import annotations

from collections.abc import Sequence

from rsd_engine.core.slots import SlotRequest
from rsd_kernels.state.enums import NUM_ROLES, Mode, Role
from rsd_kernels.state.slots import SlotState, pages_for

ROLES_OF_MODE = {
    Mode.RSD: (Role.DRAFT, Role.TARGET, Role.PRM),
    Mode.DRAFT: (Role.DRAFT,),
    Mode.TARGET: (Role.TARGET,),
}


def pages_at(
    request: SlotRequest, length: int, tokens_per_page: Sequence[int], prm_kv: Role = Role.PRM
) -> int:
    """Pages of all its roles when its context has `length` tokens.

    prm_kv: whose pages the PRM's passes use; if a writer's, its context has the longer of the two.
    """
    output = length - len(request.prompt)
    added = min(output, request.max_steps) * request.prm_step_ids + request.prm_transient
    prm_length = min(len(request.prm_prompt) + output + added, request.prm_max_len)
    longest = dict.fromkeys(ROLES_OF_MODE[request.mode], length)
    if longest.pop(Role.PRM, None) is not None:
        longest[prm_kv] = max(prm_length, longest.get(prm_kv, 0))
    return sum(pages_for(tokens, tokens_per_page[role]) for role, tokens in longest.items())


def pages_for_longest_step(
    request: SlotRequest, length: int, tokens_per_page: Sequence[int], prm_kv: Role = Role.PRM
) -> int:
    """Pages of all its roles when one step more, as long as it may be, follows `length` tokens."""
    longest = min(request.length_limit, length + request.max_step_tokens)
    return pages_at(request, longest, tokens_per_page, prm_kv)


def is_stuck(state: SlotState) -> bool:
    """Whether the last launch found a slot that lacks pages and no slot that could go on.

    A launch that ended at its tick cap proves nothing: others may go on in the next one.
    """
    went_on = int(state.pass_role) != NUM_ROLES or int(state.tick) > int(state.tick_cap)
    return not went_on and bool(state.lacks_pages.any())
