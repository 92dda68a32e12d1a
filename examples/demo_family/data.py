"""Training rows of the demo models: problems as token ids, in batches of similar length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerFast

from examples.demo_family.branches import Branch, attention_mask, positions
from examples.demo_family.tokenizer import ASSISTANT, BOS, EOS, SYSTEM, SYSTEM_PROMPTS, USER
from rsd_engine.demo.problems import Problem, generate
from rsd_engine.demo.stories import between, pick

POOL = 2048  # problems drawn at once; sorted by length they need little padding
MARK_WEIGHTS = (0.2, 0.05, 1.0, 1.0)  # wrong and right so far, wrong and right step
_SEED_STRIDE = 1_000_003  # pools of different seeds never share a stream


@dataclass
class Row:
    """A training sequence, and which of its tokens to predict and to judge."""

    ids: list[int]
    words_from: int  # next-token loss on the tokens from this index
    words_to: int
    marks: list[int]  # per token, for the value head, as `reward_data` names them; -1: none
    branches: list[Branch] = field(default_factory=list)


@dataclass
class Batch:
    """Padded rows, and the flat indices of the positions at which each loss is taken."""

    ids: torch.Tensor  # [rows, length]
    positions: torch.Tensor  # [rows, length]
    mask: torch.Tensor  # [rows, 1, length, length], added to attention scores
    word_at: torch.Tensor  # flat indices whose next token is predicted
    word_labels: torch.Tensor
    mark_at: torch.Tensor  # flat indices that the value head judges
    mark_labels: torch.Tensor
    mark_weights: torch.Tensor


def chat_prompt(question: str, system: str | None = None) -> str:
    """What the chat template renders for one question; a test checks that they agree."""
    head = f"{SYSTEM}{system}\n" if system else ""
    return f"{BOS}{head}{USER}{question}\n{ASSISTANT}"


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of many texts at once."""
    fast = tokenizer.backend_tokenizer
    return [item.ids for item in fast.encode_batch(list(texts), add_special_tokens=False)]


def random_system(rng: random.Random) -> str | None:
    """No system message half of the time, else a known one or words in random order."""
    draw = rng.random()
    if draw < 0.5:
        return None
    if draw < 0.7:
        return SYSTEM_PROMPTS[0]
    if draw < 0.85:
        return pick(rng, SYSTEM_PROMPTS)
    known = " ".join(SYSTEM_PROMPTS).split()
    return " ".join(pick(rng, known) for _ in range(between(rng, 2, 14)))


def language_rows(
    tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem], rng: random.Random
) -> list[Row]:
    """Prompt, solution and eos of each problem, with the loss on solution and eos."""
    prompts = encode(tokenizer, [chat_prompt(p.question, random_system(rng)) for p in problems])
    solutions = encode(tokenizer, [p.solution + EOS for p in problems])
    return [
        Row(prompt + solution, len(prompt), len(prompt) + len(solution), [])
        for prompt, solution in zip(prompts, solutions, strict=True)
    ]


def pools(seed: int, start: int) -> Iterator[tuple[int, list[Problem]]]:
    """Endless pools of training problems, with numbers so that a run can resume at any of them."""
    index = start
    while True:
        yield index, generate(seed * _SEED_STRIDE + index, "train", POOL)
        index += 1


def batches(rows: list[Row], tokens: int, rng: random.Random) -> list[Batch]:
    """Batches of rows of similar length, with at most `tokens` tokens, padding included."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    groups: list[list[Row]] = [[]]
    for row in ordered:
        if groups[-1] and (len(groups[-1]) + 1) * _padded(len(row.ids)) > tokens:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    return [_collate(group) for group in groups if len(group) > 1]  # one row: would recompile


def _padded(length: int) -> int:
    return -(-length // 16) * 16


def _collate(rows: list[Row]) -> Batch:
    """Pads on the right, which needs no mask: attention never looks ahead."""
    width = _padded(max(len(row.ids) for row in rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    word_at, word_labels, mark_at, mark_labels, weights = [], [], [], [], []
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        word_at += [i * width + j - 1 for j in range(row.words_from, row.words_to)]
        word_labels += row.ids[row.words_from : row.words_to]
        judged = [j for j, mark in enumerate(row.marks) if mark >= 0]
        mark_at += [i * width + j for j in judged]
        mark_labels += [row.marks[j] & 1 for j in judged]
        weights += [MARK_WEIGHTS[row.marks[j]] for j in judged]
    branches = [row.branches for row in rows]
    return Batch(
        ids,
        positions(branches, width),
        attention_mask(branches, width),
        torch.tensor(word_at, dtype=torch.long),
        torch.tensor(word_labels, dtype=torch.long),
        torch.tensor(mark_at, dtype=torch.long),
        torch.tensor(mark_labels, dtype=torch.float),
        torch.tensor(weights),
    )
