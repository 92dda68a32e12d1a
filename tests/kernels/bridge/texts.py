"""Slots that write text token by token, as a tokenizer of toy size has it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from rsd_engine.steps.automaton import build_automaton
from rsd_kernels.state.enums import MAX_DELIMITER_STATES, MAX_STOP_STATES, Mode
from rsd_kernels.state.slots import SlotSizes, SlotState
from rsd_kernels.state.tables import StepTables
from tests.steps.test_prm_tokens import PARTS, Family
from tests.steps.toy_tokenizers import corpus

CPU = torch.device("cpu")
SLOTS = 6
BEYOND = b"\n\n\n"  # in a token that runs past a blank line
ROW = 150


def a_state(made: Family, rng: random.Random, prm_max_len: int) -> SlotState:
    state = SlotState.allocate(SlotSizes(SLOTS, ROW, prm_max_len, 4, 8, 64), CPU)
    for b in range(SLOTS):
        state.mode[b] = Mode.DRAFT if b == 1 else Mode.RSD
        state.overflow_mode[b] = {2: Mode.TARGET, 3: Mode.DRAFT}.get(b, Mode.RSD)
        state.max_step_tokens[b] = rng.choice([3, 100, 100, 100])
        state.min_length[b] = rng.choice([0, 0, 20])
        state.length_limit[b] = ROW - 8
        state.stop_tokens[b] = -1
        state.stop_tokens[b, 0] = made.vocabulary.num_tokens - 1
        state.num_logprobs[b] = rng.choice([-1, 2])
        state.temperature[b] = 0.7 if b == 4 else 0.0  # drawing takes the interpreter long
        state.repetition_penalty[b] = rng.choice([1.0, 1.3])
        state.top_p[b] = 1.0
        state.seed[b] = rng.randrange(2**63)
        stops = build_automaton([".\n", "zz"] if b % 3 == 0 else [], MAX_STOP_STATES, "stop")
        delimiters = build_automaton(
            [".", "\n\n"] if b == 2 else ["\n\n"], MAX_DELIMITER_STATES, "step_delimiters"
        )
        for moves, automaton in ((state.delimiter_moves, delimiters), (state.stop_moves, stops)):
            moves[b, : automaton.next.shape[0]] = automaton.moves
    state.token_logprob.normal_()
    state.top_logprob.normal_()
    state.top_token.random_(0, 99)
    return state


def token_stream(made: Family, rng: random.Random) -> Iterator[int]:
    """Text as the tokenizer writes it, with any other id now and then, and bad logits."""
    while True:
        text = rng.choice(corpus())
        start = rng.randrange(len(text) // 2)
        signs = "".join(rng.choice(PARTS) for _ in range(5)) + "\n\n"
        for token in made.tokenizer.encode(text[start : start + 40] + signs).ids:
            if rng.random() < 0.06:
                beyond = [i for i, data in enumerate(made.vocabulary.token_bytes) if BEYOND in data]
                yield rng.choice([-1, rng.randrange(made.vocabulary.num_tokens), *beyond[:4]])
            yield token


def logits_of(tokens: list[int], num_tokens: int) -> Tensor:
    """Rows from which any temperature draws these tokens; -1: a row that is not finite."""
    logits = torch.randn(len(tokens), num_tokens)
    for row, token in zip(logits, tokens, strict=True):
        row[token] = 90.0 if token >= 0 else torch.nan
    return logits


def two_for_one(tables: StepTables) -> StepTables:
    """Two tokens for every prefix, which no toy tokenizer has."""
    return replace(
        tables,
        prefix_start=tables.prefix_start * 2,
        prefix_token=tables.prefix_token.repeat_interleave(2),
    )


def around_steps(tables: StepTables) -> StepTables:
    """Two ids before every step but the first and three behind it, of which one leaves again."""
    return replace(
        tables,
        separator=torch.tensor([3, 4, 5], dtype=torch.int32),
        before_step=torch.tensor([6, 7], dtype=torch.int32),
        num_transient=1,
    )


def restart_ended(state: SlotState) -> None:
    """What `end_step` does, and a new request where the output has ended."""
    for b in range(SLOTS):
        if not int(state.ended[b]):
            continue
        state.committed[b] = state.length[b]
        state.num_steps[b] += 1
        state.prm_committed[b] = state.prm_keep[b]
        state.stop_committed[b] = state.stop_state[b]
        if int(state.finish[b]) or int(state.length[b]) > ROW - 20:
            cursors = ("length", "committed", "prm_length", "prm_committed", "prm_keep")
            for name in (*cursors, "stop_state", "num_steps"):
                getattr(state, name)[b] = 0
            state.mode[b] = Mode.DRAFT if b == 1 else Mode.RSD
        for name in ("delimiter_state", "match_bytes", "finish", "ended"):
            getattr(state, name)[b] = 0
