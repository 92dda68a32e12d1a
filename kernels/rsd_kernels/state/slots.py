"""The state of the running batch: device tensors with one row per slot, allocated once.

Every op of the loop reads and writes these tensors and returns nothing, and no address ever
changes, so the same program can be walked by the host or captured into a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rsd_kernels.state.enums import (
    MAX_DELIMITER_STATES,
    MAX_LOGPROBS,
    MAX_STOP_STATES,
    MAX_STOP_TOKENS,
    NUM_ROLES,
)

ANY_ROWS = (2**31 - 1,)  # one body a role, whatever the number of rows


@dataclass(frozen=True)
class SlotSizes:
    """Sizes of the state; fixed when it is allocated."""

    num_slots: int  # B
    max_len: int  # L: prompt and output tokens, with slack for replaced tokens
    prm_max_len: int  # L'
    pages_per_role: int  # P: page-table columns
    num_pages: int  # N: pages of the shared pool
    log_words: int  # int32 words of the step log; the loop returns before it is full
    # rows of the bodies that each role has, ascending; a pass takes the least that holds its rows
    row_buckets: tuple[int, ...] = ANY_ROWS


@dataclass(frozen=True)
class SlotState:
    """Integers are int32 unless said. `[3, ...]` is indexed by `Role`."""

    # token rows
    tokens: Tensor  # [B, L] prompt and output
    length: Tensor  # [B] valid tokens
    committed: Tensor  # [B] tokens at the last kept step end
    prompt_length: Tensor  # [B]
    length_limit: Tensor  # [B] length at which the output ends as `length`
    prm_tokens: Tensor  # [B, L'] the PRM's own row: other prompt, other separators
    prm_length: Tensor  # [B]
    prm_committed: Tensor  # [B]
    # KV memory
    kv_len: Tensor  # [3, B] tokens whose K/V the model holds
    page_table: Tensor  # [3, B, P]
    num_pages: Tensor  # [3, B] pages held
    free_pages: Tensor  # [N] stack of free pages
    num_free: Tensor  # [1]
    # life of a slot
    phase: Tensor  # [B] Phase
    mode: Tensor  # [B] Mode
    active: Tensor  # [B] 0 while preempted
    generation: Tensor  # [B] which request sits in the slot
    arrival: Tensor  # [B] order of arrival: the smallest is the oldest
    lacks_pages: Tensor  # [B] 1 if the last schedule found no pages for it
    next_token: Tensor  # [B] token just sampled, -1 if the logits were not finite
    ended: Tensor  # [B] 1 if the step ended in this pass
    # steps
    num_steps: Tensor  # [B] kept steps
    max_steps: Tensor  # [B]
    max_step_tokens: Tensor  # [B]
    min_length: Tensor  # [B] length before which nothing may stop the output
    finish: Tensor  # [B] Finish of the step being written; takes effect when it is kept
    step_source: Tensor  # [B] Role that wrote the step
    match_bytes: Tensor  # [B] bytes of the delimiter that ended the step, 0 if none did
    delimiter_state: Tensor  # [B] automaton over the current step
    stop_state: Tensor  # [B] automaton over the whole output
    stop_committed: Tensor  # [B] its copy at the last kept step end
    delimiter_next: Tensor  # [B, MAX_DELIMITER_STATES, 256] int16
    delimiter_match: Tensor  # [B, MAX_DELIMITER_STATES] int16: bytes matched, 0 = none
    stop_next: Tensor  # [B, MAX_STOP_STATES, 256] int16
    stop_match: Tensor  # [B, MAX_STOP_STATES] int16
    stop_tokens: Tensor  # [B, MAX_STOP_TOKENS] ids that end the output, padded with -1
    # sampling and policy
    temperature: Tensor  # [B] float32, 0 = greedy
    top_k: Tensor  # [B] 0 = all
    top_p: Tensor  # [B] float32
    min_p: Tensor  # [B] float32
    repetition_penalty: Tensor  # [B] float32
    seed: Tensor  # [B] int64
    sample_index: Tensor  # [B] which of the request's n samples
    num_logprobs: Tensor  # [B] -1 = none asked for
    policy_kind: Tensor  # [B] PolicyKind
    policy_a: Tensor  # [B] float32
    policy_b: Tensor  # [B] float32
    reward: Tensor  # [B] float32, of the step last scored
    # logprobs of the rows' tokens; written only for slots that ask
    token_logprob: Tensor  # [B, L] float32
    top_logprob: Tensor  # [B, L, MAX_LOGPROBS] float32
    top_token: Tensor  # [B, L, MAX_LOGPROBS]
    # counters
    tokens_read: Tensor  # [3, B] rows the model read for this request
    passes: Tensor  # [3, B] passes it took part in
    nanoseconds: Tensor  # [3, B] int64: time of those passes
    nan_rewards: Tensor  # [B] rewards that were not a number
    # the loop
    running: Tensor  # [1] 0 when the loop shall return
    pass_role: Tensor  # [1] the role of this tick's pass, NUM_ROLES if none
    pass_body: Tensor  # [1] role * K + bucket: which body of the loop runs it; 3 K if none
    row_buckets: Tensor  # [K] rows of the bodies of every role, ascending
    num_rows: Tensor  # [1] packed rows of this pass
    num_seqs: Tensor  # [1] sequences of this pass
    pass_start: Tensor  # [1] int64 nanoseconds
    tick_end: Tensor  # [1] int64 nanoseconds: when the last op of the last tick was done
    idle_nanoseconds: Tensor  # [1] int64: from there to the next tick's first op, summed
    tick_nanoseconds: Tensor  # [1] int64: of whole ticks, from first op to last, summed
    tick: Tensor  # [1] ticks of this launch
    tick_cap: Tensor  # [1]
    role_wait: Tensor  # [3] ticks a role with ready slots was passed over
    last_role: Tensor  # [1] the role of the last pass, also of an earlier launch
    host_request: Tensor  # [1] HostRequest
    log: Tensor  # [log_words] decided steps, appended
    log_head: Tensor  # [1] words written

    @property
    def num_slots(self) -> int:
        return self.length.shape[0]

    @classmethod
    def allocate(cls, sizes: SlotSizes, device: torch.device) -> SlotState:
        """All zeros, every page free, page 0 on top of the stack."""
        shapes = _shapes(sizes)
        tensors = {
            f.name: torch.zeros(
                shapes[f.name], dtype=_DTYPES.get(f.name, torch.int32), device=device
            )
            for f in fields(cls)
        }
        tensors["free_pages"] = torch.arange(
            sizes.num_pages - 1, -1, -1, dtype=torch.int32, device=device
        )
        tensors["num_free"].fill_(sizes.num_pages)
        tensors["row_buckets"] = torch.tensor(sizes.row_buckets, dtype=torch.int32, device=device)
        return cls(**tensors)


_DTYPES = {
    **dict.fromkeys(("delimiter_next", "delimiter_match", "stop_next", "stop_match"), torch.int16),
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "policy_a",
            "policy_b",
            "reward",
            "token_logprob",
            "top_logprob",
        ),
        torch.float32,
    ),
    **dict.fromkeys(
        (
            "seed",
            "nanoseconds",
            "pass_start",
            "tick_end",
            "idle_nanoseconds",
            "tick_nanoseconds",
        ),
        torch.int64,
    ),
}


def _shapes(sizes: SlotSizes) -> dict[str, tuple[int, ...]]:
    b, row = sizes.num_slots, sizes.max_len
    shapes: dict[str, tuple[int, ...]] = {f.name: (b,) for f in fields(SlotState)}
    shapes |= dict.fromkeys(
        ("kv_len", "num_pages", "tokens_read", "passes", "nanoseconds"), (NUM_ROLES, b)
    )
    shapes |= dict.fromkeys(
        (
            "num_free",
            "running",
            "pass_role",
            "pass_body",
            "num_rows",
            "num_seqs",
            "pass_start",
            "tick_end",
            "idle_nanoseconds",
            "tick_nanoseconds",
            "tick",
            "tick_cap",
            "host_request",
            "log_head",
            "last_role",
        ),
        (1,),
    )
    shapes |= {
        "tokens": (b, row),
        "prm_tokens": (b, sizes.prm_max_len),
        "page_table": (NUM_ROLES, b, sizes.pages_per_role),
        "free_pages": (sizes.num_pages,),
        "delimiter_next": (b, MAX_DELIMITER_STATES, 256),
        "delimiter_match": (b, MAX_DELIMITER_STATES),
        "stop_next": (b, MAX_STOP_STATES, 256),
        "stop_match": (b, MAX_STOP_STATES),
        "stop_tokens": (b, MAX_STOP_TOKENS),
        "token_logprob": (b, row),
        "top_logprob": (b, row, MAX_LOGPROBS),
        "top_token": (b, row, MAX_LOGPROBS),
        "role_wait": (NUM_ROLES,),
        "row_buckets": (len(sizes.row_buckets),),
        "log": (sizes.log_words,),
    }
    return shapes
