"""The state of the running batch: device tensors, allocated once, that every op of the loop shares.

Ops read and write these tensors and return nothing, and no address ever changes, so the same
program can be walked by the host or captured into a CUDA graph.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import torch
from torch import Tensor, float32, int16, int32, int64

from rsd_kernels.launch import ceil_div
from rsd_kernels.state.columns import allocate, num_bytes
from rsd_kernels.state.enums import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BIASED_TOKENS,
    MAX_DELIMITER_STATES,
    MAX_LOGPROBS,
    MAX_STOP_STATES,
    MAX_STOP_TOKENS,
    NUM_GUESS_SOURCES,
    NUM_ROLES,
    RATE_STEPS,
)

ANY_ROWS = (2**31 - 1,)  # one body a role, whatever the number of rows


def pages_for(num_tokens: int, tokens_per_page: int) -> int:
    """Pages that `num_tokens` tokens occupy."""
    return ceil_div(num_tokens, tokens_per_page)


@dataclass(frozen=True)
class SlotSizes:
    """Sizes of the state; fixed when it is allocated."""

    num_slots: int  # B
    max_len: int  # L: capacity of a context, with slack for replaced tokens
    prm_max_len: int  # PRM_L: capacity of the PRM's context
    pages_per_role: int  # P: columns of the page table
    num_pages: int  # N: pages of the shared pool
    log_words: int  # W: int32 words of the step log; the loop returns before it is full
    # rows of the bodies that each role has, ascending; a pass takes the least that holds its rows
    row_buckets: tuple[int, ...] = ANY_ROWS  # K


# Dimensions of a column, by their names in `SlotSizes`.
B, L, PRM_L, P = "num_slots", "max_len", "prm_max_len", "pages_per_role"
N, W, K = "num_pages", "log_words", "num_buckets"


@dataclass(frozen=True)
class SlotState:
    """Every column: its dtype, its shape, what it means. Kernels take them in this order.

    Where the first dimension is NUM_ROLES, `Role` is the index.
    """

    # contexts
    tokens: Annotated[Tensor, int32, B, L]  # prompt and output
    length: Annotated[Tensor, int32, B]  # valid tokens
    committed: Annotated[Tensor, int32, B]  # tokens at the last kept step end
    prompt_length: Annotated[Tensor, int32, B]
    length_limit: Annotated[Tensor, int32, B]  # length at which the output ends
    prm_tokens: Annotated[Tensor, int32, B, PRM_L]  # other prompt, other separators
    prm_length: Annotated[Tensor, int32, B]
    prm_committed: Annotated[Tensor, int32, B]
    prm_keep: Annotated[Tensor, int32, B]  # its length once the step is kept
    # K/V memory
    kv_len: Annotated[Tensor, int32, NUM_ROLES, B]  # tokens of its context whose K/V a model holds
    page_table: Annotated[Tensor, int32, NUM_ROLES, B, P]
    num_pages: Annotated[Tensor, int32, NUM_ROLES, B]  # pages held
    free_pages: Annotated[Tensor, int32, N]  # a stack
    num_free: Annotated[Tensor, int32, 1]
    page_owners: Annotated[Tensor, int32, N]  # page tables that name the page; 0: it is free
    page_stamp: Annotated[Tensor, int32, N]  # how often the page was taken from the stack
    # life of a slot
    phase: Annotated[Tensor, int32, B]  # Phase
    mode: Annotated[Tensor, int32, B]  # Mode
    # Mode from the step on that does not fit the PRM's context; RSD: the output ends without it
    overflow_mode: Annotated[Tensor, int32, B]
    # 1: draft and target write in contexts of their own, so a rejected slot waits for the host,
    # which puts the target's into `tokens` or has a server write the step
    separate_contexts: Annotated[Tensor, int32, B]
    active: Annotated[Tensor, int32, B]  # 0 while preempted
    generation: Annotated[Tensor, int32, B]  # which request sits in the slot
    arrival: Annotated[Tensor, int32, B]  # order of arrival: the smallest is the oldest
    lacks_pages: Annotated[Tensor, int32, B]  # 1 if the last schedule found no pages for it
    ended: Annotated[Tensor, int32, B]  # 1 if the step ended in this pass
    prompt_roles: Annotated[Tensor, int32, B]  # bit r: role r reads the prompt in phase PROMPT
    # candidates for a step
    candidates: Annotated[Tensor, int32, B]  # slots that write them; 0: the request has none
    group: Annotated[Tensor, int32, B]  # of candidates that the slot belongs to; -1: to none
    group_left: Annotated[Tensor, int32, B]  # candidates of each group without a reward yet
    # steps
    num_steps: Annotated[Tensor, int32, B]  # kept steps
    stream_tokens: Annotated[Tensor, int32, B]  # 1: an unscored step is told token by token
    told: Annotated[Tensor, int32, B]  # tokens in the log, where these are more than `committed`
    # where the last kept step begins, until its end is tokenised again; -1: nothing to do
    kept_from: Annotated[Tensor, int32, B]
    shortened: Annotated[Tensor, int32, B]  # tokens that this has taken off the context so far
    max_steps: Annotated[Tensor, int32, B]
    max_step_tokens: Annotated[Tensor, int32, B]
    min_length: Annotated[Tensor, int32, B]  # length before which nothing may stop the output
    finish: Annotated[Tensor, int32, B]  # Finish of the step being written; counts once it is kept
    step_source: Annotated[Tensor, int32, B]  # Role that wrote the step
    confidence: Annotated[Tensor, float32, B]  # mean over the step's tokens, by `ConfidenceKind`
    match_bytes: Annotated[Tensor, int32, B]  # bytes of the delimiter that ended the step, or 0
    delimiter_state: Annotated[Tensor, int32, B]  # automaton over the current step
    stop_state: Annotated[Tensor, int32, B]  # automaton over the whole output
    stop_committed: Annotated[Tensor, int32, B]  # its copy at the last kept step end
    delimiter_next: Annotated[Tensor, int16, B, MAX_DELIMITER_STATES, 256]
    delimiter_match: Annotated[Tensor, int16, B, MAX_DELIMITER_STATES]  # bytes; 0: none
    stop_next: Annotated[Tensor, int16, B, MAX_STOP_STATES, 256]
    stop_match: Annotated[Tensor, int16, B, MAX_STOP_STATES]
    stop_tokens: Annotated[Tensor, int32, B, MAX_STOP_TOKENS]  # end the output; padded with -1
    # guesses at what the target will write: they stand in `tokens` from `length` on
    speculation: Annotated[Tensor, int32, B]  # Speculation
    guess_tokens: Annotated[Tensor, int32, B]  # that the draft writes at a time; 0: by `guess_rate`
    guess_end: Annotated[Tensor, int32, B]  # where they end; at most `length`: there are none
    guess_stop: Annotated[
        Tensor, int32, B
    ]  # where the draft stops guessing; 0 after a verification
    guess_source: Annotated[Tensor, int32, B]  # GuessSource of those that stand there
    guess_rate: Annotated[Tensor, int32, B]  # share of the draft's that is kept lately, of RATE_ONE
    guesses_at_rate: Annotated[Tensor, int32, RATE_STEPS + 1]  # that pay, by `guess_rate`
    step_guesses: Annotated[Tensor, int32, B]  # tokens of the current step that were guessed
    guesses_made: Annotated[Tensor, int32, NUM_GUESS_SOURCES, B]  # that the target has read
    guesses_kept: Annotated[Tensor, int32, NUM_GUESS_SOURCES, B]
    # sampling and policy
    temperature: Annotated[Tensor, float32, B]  # 0: greedy
    top_k: Annotated[Tensor, int32, B]  # 0: all
    top_p: Annotated[Tensor, float32, B]
    min_p: Annotated[Tensor, float32, B]
    repetition_penalty: Annotated[Tensor, float32, B]
    adjusts: Annotated[Tensor, int32, B]  # 0: the request uses none of the next eight columns
    presence_penalty: Annotated[Tensor, float32, B]  # over the output's tokens, like the next one
    frequency_penalty: Annotated[Tensor, float32, B]
    num_biased: Annotated[Tensor, int32, B]
    biased_token: Annotated[Tensor, int32, B, MAX_BIASED_TOKENS]  # none of them twice
    bias: Annotated[Tensor, float32, B, MAX_BIASED_TOKENS]
    only_biased: Annotated[Tensor, int32, B]  # 1: no other id may be sampled
    num_bad_words: Annotated[Tensor, int32, B]
    # after the first tokens of a row, its last one may not be sampled; -1 fills it from the left
    bad_words: Annotated[Tensor, int32, B, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS]
    seed: Annotated[Tensor, int64, B]
    sample_index: Annotated[Tensor, int32, B]  # which of the request's n samples
    num_logprobs: Annotated[Tensor, int32, B]  # -1: none asked for
    policy_kind: Annotated[Tensor, int32, B]  # PolicyKind
    policy_a: Annotated[Tensor, float32, B]
    policy_b: Annotated[Tensor, float32, B]
    reward: Annotated[Tensor, float32, B]  # of the step last scored
    # logprobs of the context's tokens, written only for slots that ask
    token_logprob: Annotated[Tensor, float32, B, L]
    token_rank: Annotated[Tensor, int32, B, L]  # 1: the most likely; of equals, the first id
    top_logprob: Annotated[Tensor, float32, B, L, MAX_LOGPROBS]
    top_token: Annotated[Tensor, int32, B, L, MAX_LOGPROBS]
    # counters
    tokens_read: Annotated[Tensor, int32, NUM_ROLES, B]  # rows the model read for this request
    passes: Annotated[Tensor, int32, NUM_ROLES, B]  # passes it took part in
    nanoseconds: Annotated[Tensor, int64, NUM_ROLES, B]  # its share of their time
    nan_rewards: Annotated[Tensor, int32, B]  # rewards that were not a number
    # the pass
    pass_role: Annotated[Tensor, int32, 1]  # the role of this tick's pass, NUM_ROLES if none
    pass_body: Annotated[Tensor, int32, 1]  # role * K + bucket: the body that runs; 3 K if none
    row_buckets: Annotated[Tensor, int32, K]  # rows of the bodies of every role, ascending
    num_rows: Annotated[Tensor, int32, 1]  # packed rows
    num_seqs: Annotated[Tensor, int32, 1]  # sequences
    num_places: Annotated[Tensor, int32, 1]  # places
    pass_start: Annotated[Tensor, int64, 1]  # nanoseconds
    # the loop
    running: Annotated[Tensor, int32, 1]  # 0 when the loop is to return
    tick: Annotated[Tensor, int32, 1]  # ticks of this launch
    tick_cap: Annotated[Tensor, int32, 1]  # most ticks of a launch
    tick_end: Annotated[Tensor, int64, 1]  # nanoseconds: when the last tick's last op ended
    idle_nanoseconds: Annotated[Tensor, int64, 1]  # between ticks, summed
    tick_nanoseconds: Annotated[Tensor, int64, 1]  # of ticks, first op to last, summed
    role_wait: Annotated[Tensor, int32, NUM_ROLES]  # ticks a role with ready slots was passed over
    last_role: Annotated[Tensor, int32, 1]  # the role of the last pass, also of an earlier launch
    host_request: Annotated[Tensor, int32, 1]  # HostRequest
    log: Annotated[Tensor, int32, W]  # decided steps, appended
    log_head: Annotated[Tensor, int32, 1]  # words written

    @property
    def num_slots(self) -> int:
        return self.length.shape[0]

    @classmethod
    def allocate(cls, sizes: SlotSizes, device: torch.device) -> SlotState:
        """All zeros, every page free, page 0 on top of the stack."""
        state = cls(**allocate(cls, _dims(sizes), device))
        torch.arange(sizes.num_pages - 1, -1, -1, out=state.free_pages)
        state.num_free.fill_(sizes.num_pages)
        state.row_buckets.copy_(torch.tensor(sizes.row_buckets))
        state.group.fill_(-1)
        return state

    @classmethod
    def num_bytes(cls, sizes: SlotSizes) -> int:
        """What a state of these sizes takes."""
        return num_bytes(cls, _dims(sizes))


def _dims(sizes: SlotSizes) -> dict[str, int]:
    return {**asdict(sizes), K: len(sizes.row_buckets)}
