"""Puts a request into a slot, and checks that pages and lengths add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsd_engine.steps.automaton import ByteAutomaton
from rsd_kernels.state.enums import NUM_ROLES, Finish, Mode, Phase, Role
from rsd_kernels.state.pages import pages_for
from rsd_kernels.state.slots import SlotState


@dataclass(frozen=True)
class SlotRequest:
    """All that a slot knows of its request, as numbers ready for the device."""

    prompt: tuple[int, ...]
    prm_prompt: tuple[int, ...]  # empty unless the mode is RSD
    mode: Mode
    length_limit: int  # length at which the output ends
    max_steps: int
    max_step_tokens: int
    min_length: int
    delimiters: ByteAutomaton
    stops: ByteAutomaton
    stop_tokens: tuple[int, ...]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    sample_index: int
    num_logprobs: int  # -1 = none
    policy: tuple[int, float, float]  # kind, a, b


def fill_slot(
    state: SlotState, slot: int, request: SlotRequest, *, generation: int, arrival: int
) -> None:
    """Writes a new request into a free slot; it holds no pages yet."""
    prompt, prm_prompt = request.prompt, request.prm_prompt
    state.tokens[slot, : len(prompt)] = torch.tensor(prompt, dtype=torch.int32)
    state.prm_tokens[slot, : len(prm_prompt)] = torch.tensor(prm_prompt, dtype=torch.int32)
    _fill_automaton(state.delimiter_next[slot], state.delimiter_match[slot], request.delimiters)
    _fill_automaton(state.stop_next[slot], state.stop_match[slot], request.stops)
    state.stop_tokens[slot] = -1
    state.stop_tokens[slot, : len(request.stop_tokens)] = torch.tensor(
        request.stop_tokens, dtype=torch.int32
    )
    for column in (state.kv_len, state.tokens_read, state.passes, state.nanoseconds):
        column[:, slot] = 0
    kind, a, b = request.policy
    values: dict[str, float] = {
        "length": len(prompt),
        "committed": len(prompt),
        "prompt_length": len(prompt),
        "prm_length": len(prm_prompt),
        "prm_committed": len(prm_prompt),
        "length_limit": request.length_limit,
        "mode": request.mode,
        "active": 1,
        "generation": generation,
        "arrival": arrival,
        "lacks_pages": 0,
        "ended": 0,
        "num_steps": 0,
        "max_steps": request.max_steps,
        "max_step_tokens": request.max_step_tokens,
        "min_length": request.min_length,
        "finish": Finish.NONE,
        "match_bytes": 0,
        "delimiter_state": 0,
        "stop_state": 0,
        "stop_committed": 0,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "seed": request.seed,
        "sample_index": request.sample_index,
        "num_logprobs": request.num_logprobs,
        "policy_kind": kind,
        "policy_a": a,
        "policy_b": b,
        "nan_rewards": 0,
        "phase": Phase.TARGET if request.mode == Mode.TARGET else Phase.DRAFT,
    }
    for name, value in values.items():
        getattr(state, name)[slot] = value


def _fill_automaton(next_rows: Tensor, match_row: Tensor, automaton: ByteAutomaton) -> None:
    states = automaton.next.shape[0]
    next_rows[:states] = automaton.next
    match_row[:states] = automaton.match


def check_integrity(state: SlotState, tokens_per_page: tuple[int, int, int]) -> None:
    """Raises AssertionError unless every page has one owner and every length is in bounds."""
    num_free = int(state.num_free)
    owned = state.free_pages[:num_free].tolist()
    phases = state.phase.tolist()
    for slot in range(state.num_slots):
        for role in range(NUM_ROLES):
            held = int(state.num_pages[role, slot])
            kv_len = int(state.kv_len[role, slot])
            length = state.prm_length if role == Role.PRM else state.length
            owned += state.page_table[role, slot, :held].tolist()
            where = f"slot {slot}, {Role(role).name}"
            assert kv_len <= int(length[slot]), f"{where}: kv_len {kv_len} past its context"
            assert pages_for(kv_len, tokens_per_page[role]) <= held, f"{where}: too few pages"
            if phases[slot] in (Phase.FREE, Phase.DONE):
                assert held == 0, f"{where}: an idle slot holds {held} pages"
        assert int(state.committed[slot]) <= int(state.length[slot]), f"slot {slot}: committed"
    expected = list(range(state.free_pages.shape[0]))
    assert sorted(owned) == expected, "a page is lost or has two owners"
