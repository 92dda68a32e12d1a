"""Contexts whose last step was written token by token, in ways that a tokenizer would not."""

from __future__ import annotations

import random

import torch

from rsd_kernels.state.enums import Mode, Phase
from rsd_kernels.state.slots import SlotSizes, SlotState
from tests.steps.test_prm_tokens import PARTS, Family

ENDS = (
    ["\n", "\n"], [".", "\n", "\n"], [".", "\n\n"], ["\n\n"], [".\n\n"], [")", "\n", "\n"],
    ["$", "."], [".", "\n"],  # of steps that reached their limit
)  # fmt: skip
BEFORE = ("\n", "\n\n", ".\n\n", "we")  # what the step follows
NEARBY = ("\n", ".", ")", "$", " ", ".\n", "$.")
ROW = 64


def written(made: Family, rng: random.Random) -> tuple[list[int], int]:
    """A context, and where its last step begins; most steps end with a blank line."""
    by_bytes = {data: token for token, data in enumerate(made.vocabulary.token_bytes)}
    encode = made.tokenizer.encode
    before = "".join(rng.choice(PARTS) for _ in range(3)) + rng.choice(BEFORE)
    body = "".join(rng.choice([*PARTS, "\n", " "]) for _ in range(rng.randint(0, 4)))
    context = encode(before, add_special_tokens=False).ids
    first = len(context)
    context += encode(body.replace("\n\n", "\n"), add_special_tokens=False).ids
    signs = [rng.choice(NEARBY) for _ in range(rng.randint(0, 2))]
    ends = [text.encode() for text in [*signs, *rng.choice(ENDS)]]
    return context + [by_bytes[data] for data in ends if data in by_bytes], first


def kept(contexts: list[tuple[list[int], int]]) -> SlotState:
    """A slot for each context; its last step has just been kept, and both writers read most."""
    state = SlotState.allocate(SlotSizes(len(contexts), ROW, 8, 4, 8, 64), torch.device("cpu"))
    state.mode.fill_(Mode.RSD)
    state.phase.fill_(Phase.DRAFT)
    state.length_limit.fill_(ROW - 8)
    state.min_length.fill_(9)
    for b, (context, first) in enumerate(contexts):
        state.tokens[b, : len(context)] = torch.tensor(context)
        state.length[b] = state.committed[b] = len(context)
        state.kept_from[b] = state.prompt_length[b] = first
        state.kv_len[:, b] = torch.tensor([len(context) - 1, first, 5])
    return state
