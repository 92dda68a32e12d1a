"""Wrong steps that branch off a solution are read as if each ended a row of its own."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from examples.demo_family.branches import HIDDEN, Branch, attention_mask, positions
from examples.demo_family.data import batches
from examples.demo_family.reward_data import (
    STEP_RIGHT,
    STEP_WRONG,
    Solution,
    load_mistakes,
    reward_rows,
    save_mistakes,
    spoil,
)
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import check_step, generate
from tests.examples.plain_loop import load_reward_model, scorer

# Five tokens of trunk, then two branches of two tokens that stand in for tokens 2 and 4.
BRANCHES = [Branch(5, 7, 2), Branch(7, 9, 4)]


def solutions() -> list[Solution]:
    rng = random.Random(5)
    return [spoil(rng, Solution(p, p.steps)) for p in generate(31, "test", 4)]


def test_positions_go_on_from_the_place_of_the_branch() -> None:
    assert positions([BRANCHES, []], 10).tolist() == [
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 9],
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    ]


def test_a_branch_sees_the_trunk_before_it_and_itself() -> None:
    mask = attention_mask([BRANCHES], 9)[0, 0]
    assert set(mask.unique().tolist()) == {0.0, HIDDEN}
    seen = [row.nonzero().flatten().tolist() for row in mask == 0]
    assert seen[:5] == [list(range(i + 1)) for i in range(5)]
    assert seen[5:] == [[0, 1, 5], [0, 1, 5, 6], [0, 1, 2, 3, 7], [0, 1, 2, 3, 7, 8]]


def test_a_branch_scores_as_a_row_of_its_own() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint_dir("prm"))
    model = load_reward_model(checkpoint_dir("prm").parent)
    score = scorer(model, tokenizer)
    [batch] = batches(reward_rows(tokenizer, solutions()), 10_000, random.Random(0))
    with torch.inference_mode():
        values = model.logits(model.hidden(batch.ids, batch.positions, batch.mask)).sigmoid()
    judged = batch.mark_at[batch.mark_weights == 1.0]
    alone = []
    for solution in solutions():
        alone += [
            (solution.problem.question, solution.steps[: i + 1]) for i in range(len(solution.steps))
        ]
        alone += [
            (solution.problem.question, (*solution.steps[:i], text)) for i, text in solution.wrong
        ]
    packed = values.flatten()[judged].sort().values
    assert len(packed) == len(alone) > 20
    torch.testing.assert_close(packed, torch.tensor(score(alone)).sort().values, atol=1e-5, rtol=0)


def test_the_marks_say_which_steps_are_right() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint_dir("prm"))
    for solution, row in zip(solutions(), reward_rows(tokenizer, solutions()), strict=True):
        assert len(row.ids) == len(row.marks)
        assert row.marks.count(STEP_RIGHT) == len(solution.steps)
        assert row.marks.count(STEP_WRONG) == len(solution.wrong) == len(row.branches)
        assert all(row.marks[branch.end - 1] == STEP_WRONG for branch in row.branches)
        assert not any(check_step(solution.problem, i, text) for i, text in solution.wrong)
        assert all(check_step(solution.problem, i, s) for i, s in enumerate(solution.steps))


def test_mistakes_survive_a_file(tmp_path: Path) -> None:
    plain = [Solution(s.problem, s.problem.steps, s.wrong) for s in solutions()]
    save_mistakes(tmp_path / "mistakes.jsonl", plain[:2])
    save_mistakes(tmp_path / "mistakes.jsonl", plain[2:])
    loaded = load_mistakes(tmp_path / "mistakes.jsonl")
    assert [(s.problem.question, s.steps, s.wrong) for s in loaded] == [
        (s.problem.question, s.steps, s.wrong) for s in plain
    ]
