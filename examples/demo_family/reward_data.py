"""Training rows for the reward model: right solutions, with wrong steps branching off.

Besides the label at the separator, every token of a step has one: whether the step up to here can
still become right. The canonical derivation gives these labels exactly, and they show the model
where a step goes wrong, which one label per step would not.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from examples.demo_family.branches import Branch
from examples.demo_family.corrupt import commuted, corrupt, miscalculate
from examples.demo_family.data import Batch, Row, batches, chat_prompt, encode, pools
from examples.demo_family.loop import Pools
from examples.demo_family.sampling import complete, step_text
from examples.demo_family.tokenizer import BOS, delimiter_id
from rsd_engine.demo.problems import DELIMITER, Problem, check_step, generate
from rsd_engine.demo.stories import pick

SPOILED = 0.6  # share of the steps for which a wrong one is made
TEMPERATURES = (0.0, 0.0, 0.0, 0.7, 1.0)
PREFIX_GOOD, PREFIX_BAD, STEP_WRONG, STEP_RIGHT = 1, 0, 2, 3  # marks of a Row; low bit: right


@dataclass(frozen=True)
class Solution:
    """A problem, its right steps, and wrong ones in place of some of them."""

    problem: Problem
    steps: tuple[str, ...]
    wrong: tuple[tuple[int, str], ...] = ()  # (index of the step, what was written instead)


def sample_mistakes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    count: int,
    temperature: float,
) -> list[Solution]:
    """The steps of `count` training problems that a model gets wrong after right ones.

    That is a draft's situation in RSD, where the target has rewritten its mistakes.
    """
    problems = generate(seed, "train", count)
    places = [(problem, index) for problem in problems for index in range(len(problem.steps))]
    prompts = [
        chat_prompt(problem.question) + "".join(step + DELIMITER for step in problem.steps[:index])
        for problem, index in places
    ]
    written = complete(model, tokenizer, prompts, step=True, temperature=temperature, batch=256)
    wrong: dict[str, list[tuple[int, str]]] = {problem.question: [] for problem in problems}
    for (problem, index), ids in zip(places, written, strict=True):
        text = step_text(tokenizer, ids)
        if text and not check_step(problem, index, text):
            wrong[problem.question].append((index, text))
    found = [Solution(p, p.steps, tuple(wrong[p.question])) for p in problems]
    return [solution for solution in found if solution.wrong]


def save_mistakes(path: Path, found: Sequence[Solution]) -> None:
    """Appends solutions with their mistakes to a file, one JSON array per line."""
    with path.open("a") as file:
        for solution in found:
            problem = solution.problem
            fields = [problem.question, problem.steps, problem.answer, solution.wrong]
            file.write(json.dumps(fields) + "\n")


def load_mistakes(path: Path) -> list[Solution]:
    """The solutions with mistakes in a file; none if it does not exist."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text().splitlines():
        question, texts, answer, wrong = json.loads(line)
        steps = tuple(texts)
        problem = Problem(question, steps, answer, len(steps) - 1, "")
        found.append(Solution(problem, steps, tuple((index, text) for index, text in wrong)))
    return found


def spoil(rng: random.Random, solution: Solution) -> Solution:
    """The solution, some operands exchanged, with more wrong steps that are made on purpose.

    All steps are equally likely to get a wrong one: if late steps were wrong more often, the model
    would learn to distrust them.
    """
    steps = [commuted(rng, step) if rng.random() < 0.3 else step for step in solution.steps]
    wrong = list(solution.wrong)
    for index in range(len(steps)):
        text = corrupt(rng, solution.problem, index) if rng.random() < SPOILED else None
        if text is not None:
            wrong.append((index, text))
    return Solution(solution.problem, tuple(steps), tuple(wrong))


def reward_rows(tokenizer: PreTrainedTokenizerFast, solutions: Sequence[Solution]) -> list[Row]:
    """Rows in the format that the reward model reads in the engine; wrong steps are branches."""
    heads = encode(tokenizer, [f"{BOS}{solution.problem.question}\n" for solution in solutions])
    trunks = iter(encode(tokenizer, [step for s in solutions for step in s.steps]))
    golds = iter(encode(tokenizer, [step for s in solutions for step in s.problem.steps]))
    spoiled = iter(encode(tokenizer, [text for s in solutions for _, text in s.wrong]))
    separator = delimiter_id(tokenizer)
    rows = []
    for solution, head in zip(solutions, heads, strict=True):
        row = Row(list(head), len(head), len(head), [-1] * len(head))
        places = []
        for _ in solution.steps:
            places.append(len(row.ids))
            _add_step(row, next(trunks), separator)
        row.words_to = len(row.ids)
        gold = [next(golds) for _ in solution.steps]
        for index, _ in solution.wrong:
            begin, piece = len(row.ids), next(spoiled)
            _add_step(row, piece, separator, _shared(piece, gold[index]))
            row.branches.append(Branch(begin, len(row.ids), places[index]))
        rows.append(row)
    return rows


def _add_step(row: Row, piece: Sequence[int], separator: int, known: int | None = None) -> None:
    """Appends a step that is right, or wrong after its first `known` tokens."""
    good = len(piece) if known is None else known
    row.ids += [*piece, separator]
    row.marks += [PREFIX_GOOD] * good + [PREFIX_BAD] * (len(piece) - good)
    row.marks.append(STEP_RIGHT if known is None else STEP_WRONG)


def drill_rows(
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    rng: random.Random,
    count: int,
    length: int = 12,
) -> list[Row]:
    """Rows of unrelated steps without a question, right or wrong by their arithmetic alone.

    A lost carry is the commonest mistake and the hardest to see; such a row shows about six of
    them, a row about a problem one at most.
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
            _add_step(row, piece, separator, None if piece == gold else _shared(piece, gold))
        rows.append(row)
    return rows


def _shared(piece: Sequence[int], gold: Sequence[int]) -> int:
    """Length of the common prefix of a step and the right one."""
    count = 0
    for one, other in zip(piece, gold, strict=False):
        if one != other:
            break
        count += 1
    return count


def reward_pools(
    tokenizer: PreTrainedTokenizerFast,
    mistakes: Sequence[Solution],
    seed: int,
    tokens: int,
    share: float = 0.5,
) -> Pools:
    """Pools of drills and of solutions with wrong steps, a share of which are sampled mistakes."""

    def stream(start: int, rng: random.Random) -> Iterator[tuple[int, list[Batch]]]:
        for index, problems in pools(seed, start):
            items = [Solution(problem, problem.steps) for problem in problems]
            if mistakes:
                extra = int(len(items) * share)
                places = [int(rng.random() * len(mistakes)) for _ in range(extra)]
                items[:extra] = [mistakes[place] for place in places]
            rows = reward_rows(tokenizer, [spoil(rng, item) for item in items])
            rows += drill_rows(tokenizer, problems, rng, len(items) // 10)
            yield index, batches(rows, tokens, rng)

    return stream
