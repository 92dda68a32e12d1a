"""Rows for the reward model: solutions whose last step may be wrong.

Beside the label at the separator, every token of a step carries one: whether the step written
so far can still become right. The canonical derivation gives it exactly, and it tells the model
where a step goes wrong, which one label a step would leave it to find out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rsd_engine.demo.corrupt import commuted, corrupt, miscalculate
from rsd_engine.demo.data import Batch, Row, batches, chat_prompt, encode, pools
from rsd_engine.demo.loop import Pools
from rsd_engine.demo.problems import (
    DELIMITER,
    Problem,
    check_step,
    count_right_steps,
    generate,
)
from rsd_engine.demo.sampling import complete, written_text
from rsd_engine.demo.stories import pick
from rsd_engine.demo.tokenizer import BOS, delimiter_id

TEMPERATURES = (0.0, 0.7, 1.0, 1.0, 1.3)
PREFIX_GOOD, PREFIX_BAD, STEP_WRONG, STEP_RIGHT = 1, 0, 2, 3  # marks of a Row; low bit: right


@dataclass(frozen=True)
class Mistake:
    """The first wrong step a model wrote, after steps that were all right."""

    problem: Problem
    written: tuple[str, ...]  # the steps up to and with the wrong one


def sample_mistakes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    count: int,
    temperature: float,
) -> list[Mistake]:
    """First wrong steps among the solutions a model writes to `count` training problems."""
    problems = generate(seed, "train", count)
    prompts = [chat_prompt(problem.question) for problem in problems]
    mistakes = []
    for problem, ids in zip(
        problems,
        complete(model, tokenizer, prompts, temperature=temperature, batch=256),
        strict=True,
    ):
        steps = written_text(tokenizer, ids).split(DELIMITER)
        right = count_right_steps(problem, steps)
        if right < len(steps) and steps[right]:
            mistakes.append(Mistake(problem, tuple(steps[: right + 1])))
    return mistakes


def save_mistakes(path: Path, mistakes: Sequence[Mistake]) -> None:
    """Append mistakes to a file, one JSON object a line."""
    with path.open("a") as file:
        for mistake in mistakes:
            problem = mistake.problem
            fields = [problem.question, problem.steps, problem.answer, mistake.written]
            file.write(json.dumps(fields) + "\n")


def load_mistakes(path: Path) -> list[Mistake]:
    """The mistakes of a file; none where it does not exist."""
    if not path.is_file():
        return []
    mistakes = []
    for line in path.read_text().splitlines():
        question, steps, answer, written = json.loads(line)
        problem = Problem(question, tuple(steps), answer, len(steps) - 1, "")
        mistakes.append(Mistake(problem, tuple(written)))
    return mistakes


def synthetic(rng: random.Random, problem: Problem) -> Mistake:
    """The problem with a step spoiled, or left right where the draw does not spoil it."""
    written = [commuted(rng, step) if rng.random() < 0.3 else step for step in problem.steps]
    if rng.random() < 0.85:
        index = int(rng.random() * len(written))
        wrong = corrupt(rng, problem, index)
        if wrong is not None:
            return Mistake(problem, (*written[:index], wrong))
    return Mistake(problem, tuple(written))


def reward_rows(tokenizer: PreTrainedTokenizerFast, items: Sequence[Mistake]) -> list[Row]:
    """Rows in the format the engine feeds the reward model."""
    heads = encode(tokenizer, [f"{BOS}{item.problem.question}\n" for item in items])
    pieces = iter(encode(tokenizer, [step for item in items for step in item.written]))
    golds = iter(encode(tokenizer, [s for item in items for s in item.problem.steps]))
    separator = delimiter_id(tokenizer)
    rows = []
    for item, head in zip(items, heads, strict=True):
        gold = [next(golds) for _ in item.problem.steps]
        row = Row(list(head), len(head), len(head), [-1] * len(head))
        for index, text in enumerate(item.written):
            right = check_step(item.problem, index, text)
            piece = next(pieces)
            known = len(piece) if right else _shared(piece, gold[index : index + 1])
            row.ids += [*piece, separator]
            row.marks += [PREFIX_GOOD] * known + [PREFIX_BAD] * (len(piece) - known)
            row.marks.append(STEP_RIGHT if right else STEP_WRONG)
            if right:
                row.words_to = len(row.ids)
        rows.append(row)
    return rows


def drill_rows(
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    rng: random.Random,
    count: int,
    length: int = 12,
) -> list[Row]:
    """Rows of unrelated steps without a question, right or wrong by their arithmetic alone.

    A lost carry is the commonest mistake and the hardest to see; a row of these shows six of
    them where a row about a problem shows one at most.
    """
    pool = [step for problem in problems for step in problem.steps[:-1]]
    golds = [pick(rng, pool) for _ in range(count * length)]
    written = [miscalculate(rng, step) if rng.random() < 0.5 else step for step in golds]
    [head] = encode(tokenizer, [f"{BOS}\n"])
    separator = delimiter_id(tokenizer)
    pieces = list(zip(encode(tokenizer, written), encode(tokenizer, golds), strict=True))
    rows = []
    for start in range(0, len(pieces), length):
        row = Row(list(head), len(head), len(head), [-1] * len(head))
        for piece, gold in pieces[start : start + length]:
            known = _shared(piece, [gold])
            row.ids += [*piece, separator]
            row.marks += [PREFIX_GOOD] * known + [PREFIX_BAD] * (len(piece) - known)
            row.marks.append(STEP_RIGHT if piece == gold else STEP_WRONG)
        rows.append(row)
    return rows


def _shared(piece: Sequence[int], golds: Sequence[Sequence[int]]) -> int:
    """Length of the common start of a step and the right one (0 where none is left)."""
    count = 0
    for gold in golds:
        for one, other in zip(piece, gold, strict=False):
            if one != other:
                break
            count += 1
    return count


def reward_pools(
    tokenizer: PreTrainedTokenizerFast,
    mistakes: Sequence[Mistake],
    seed: int,
    tokens: int,
    share: float = 0.25,
) -> Pools:
    """Pools of spoiled problems, with sampled mistakes mixed in."""

    def stream(start: int, rng: random.Random) -> Iterator[tuple[int, list[Batch]]]:
        for index, problems in pools(seed, start):
            items = [synthetic(rng, problem) for problem in problems]
            if mistakes:
                extra = int(len(items) * share)
                places = [int(rng.random() * len(mistakes)) for _ in range(extra)]
                items[:extra] = [mistakes[place] for place in places]
            rows = reward_rows(tokenizer, items)
            rows += drill_rows(tokenizer, problems, rng, len(items) // 5)
            yield index, batches(rows, tokens, rng)

    return stream
