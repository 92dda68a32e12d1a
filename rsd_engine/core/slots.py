"""Puts a request into a slot."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rsd_engine.steps.automaton import ByteAutomaton
from rsd_engine.steps.selection import Selection, slots_of
from rsd_kernels.state.enums import RATE_ONE, Mode, Phase, Speculation
from rsd_kernels.state.slots import SlotState


@dataclass(frozen=True)
class SlotRequest:
    """All that a slot knows of its request, as numbers ready for the device.

    Where draft and target have vocabularies of their own, it is what the draft needs, and `target`
    the same request for the target.
    """

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
    overflow_mode: Mode = Mode.RSD  # when the PRM's context is full; RSD: the output ends
    prm_limits: bool = False  # `length_limit` is what fits there, less than the request wants
    prm_step_ids: int = 1  # what each step adds to the PRM's context beside its own tokens
    prm_transient: int = 0  # ids that leave that context once they are read
    stream_tokens: bool = False  # report tokens as they come; for modes without a PRM
    prompt_logprobs: int = -1  # -1 = none
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    biases: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit), all different
    only_biased: bool = False  # no token that is not in `biases` may be sampled
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that may not be written
    speculation: Speculation = Speculation.NONE
    guess_tokens: int = 0  # at a time; 0: as many as pay
    step_candidates: int = 1  # drafts of a step, or of each beam's
    select: Selection | None = None  # which of several candidates is taken; None: there is one
    # tokens that a context may have, where the two writers' contexts grow apart
    max_context: int = 2**31 - 1
    target: SlotRequest | None = None

    @property
    def num_slots(self) -> int:
        """Slots that it needs at once."""
        return slots_of(self.step_candidates, self.select)

    @property
    def has_candidates(self) -> bool:
        """Whether several steps are written for one that is kept."""
        return self.num_slots > 1

    @property
    def max_tokens(self) -> int:
        """Most tokens of its output."""
        return self.length_limit - len(self.prompt)

    @property
    def adjusts(self) -> bool:
        """Whether a penalty of the output, a bias or a bad word changes logits."""
        penalties = self.presence_penalty or self.frequency_penalty
        return bool(penalties or self.biases or self.only_biased or self.bad_words)


_COPIED = (  # from the request, under the same name
    "length_limit", "mode", "overflow_mode", "max_steps", "max_step_tokens", "min_length",
    "temperature", "top_p", "min_p", "repetition_penalty", "seed", "sample_index", "num_logprobs",
    "stream_tokens", "presence_penalty", "frequency_penalty", "speculation", "guess_tokens",
)  # fmt: skip
_COPIED_OF_WRITER = ("top_k", "adjusts", "only_biased")  # the same, where they are about ids
_ZERO = (  # when a request starts
    "lacks_pages", "ended", "num_steps", "finish", "match_bytes", "delimiter_state", "stop_state",
    "stop_committed", "told", "shortened", "confidence", "guess_end", "guess_stop",
    "guess_source", "step_guesses", "prompt_roles", "group_left",
)  # fmt: skip


def fill_slot(
    state: SlotState, slot: int, request: SlotRequest, *, generation: int, arrival: int
) -> None:
    """Writes a new request into a free slot; it holds no pages yet."""
    prompt, prm_prompt = request.prompt, request.prm_prompt
    state.tokens[slot, : len(prompt)] = torch.tensor(prompt, dtype=torch.int32)
    state.prm_tokens[slot, : len(prm_prompt)] = torch.tensor(prm_prompt, dtype=torch.int32)
    for moves, automaton in (
        (state.delimiter_moves, request.delimiters), (state.stop_moves, request.stops),
    ):  # fmt: skip
        moves[slot, : automaton.next.shape[0]] = automaton.moves
    reset_counters(state, slot)
    state.kv_len[:, slot] = 0
    state.guess_rate[slot] = RATE_ONE  # until some have been judged
    for column in (state.length, state.committed, state.prompt_length):
        column[slot] = len(prompt)
    for column in (state.prm_length, state.prm_committed, state.prm_keep):
        column[slot] = len(prm_prompt)
    fill_writer(state, slot, request)
    for name in _COPIED:
        getattr(state, name)[slot] = getattr(request, name)
    for name in _ZERO:
        getattr(state, name)[slot] = 0
    for column in (state.kept_from, state.group):
        column[slot] = -1
    state.policy_kind[slot], state.policy_a[slot], state.policy_b[slot] = request.policy
    state.separate_contexts[slot] = request.target is not None
    state.candidates[slot] = request.num_slots if request.has_candidates else 0
    state.generation[slot] = generation
    state.arrival[slot] = arrival
    state.active[slot] = 1
    state.phase[slot] = Phase.TARGET if request.mode == Mode.TARGET else Phase.DRAFT


def reset_counters(state: SlotState, slot: int) -> None:
    """For a request that starts."""
    for column in (
        state.tokens_read, state.passes, state.nanoseconds, state.guesses_made, state.guesses_kept,
    ):  # fmt: skip
        column[:, slot] = 0
    state.nan_rewards[slot] = 0


def fill_writer(state: SlotState, slot: int, request: SlotRequest) -> None:
    """Writes what a request says about single ids: they are those of one vocabulary."""
    state.stop_tokens[slot] = -1
    state.stop_tokens[slot, : len(request.stop_tokens)] = torch.tensor(
        request.stop_tokens, dtype=torch.int32
    )
    for name in _COPIED_OF_WRITER:
        getattr(state, name)[slot] = getattr(request, name)
    _fill_biases(state, slot, request)


def _fill_biases(state: SlotState, slot: int, request: SlotRequest) -> None:
    state.num_biased[slot] = count = len(request.biases)
    if request.biases:
        ids, biases = zip(*request.biases, strict=True)
        state.biased_token[slot, :count] = torch.tensor(ids, dtype=torch.int32)
        state.bias[slot, :count] = torch.tensor(biases)
    state.num_bad_words[slot] = len(request.bad_words)
    for i, word in enumerate(request.bad_words):
        state.bad_words[slot, i] = -1
        state.bad_words[slot, i, -len(word) :] = torch.tensor(word, dtype=torch.int32)
