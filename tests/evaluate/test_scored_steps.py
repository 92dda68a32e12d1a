"""Which steps were scored, and what is known about them."""

from __future__ import annotations

from rsd_engine.demo.problems import DELIMITER, generate
from rsd_engine.evaluate.record import Counts, Question, Record, ScoredText, StepRecord
from rsd_engine.evaluate.scored_steps import ScoredStep, are_checked, scored_steps


def record(question: Question, steps: tuple[StepRecord, ...], *, correct: bool) -> Record:
    return Record(
        question=question,
        method="rsd",
        settings={"threshold": 0.5},
        seed=0,
        text="".join(step.text for step in steps),
        found=None,
        correct=correct,
        finish_reason="stop",
        counts=Counts(),
        seconds=0.0,
        steps=steps,
    )


def test_steps_of_the_demo_are_checked_as_long_as_all_before_are_right() -> None:
    problem = next(one for one in generate(0, "test", 20) if len(one.steps) >= 4)
    number = generate(0, "test", 20).index(problem)
    first, second, third, *_ = (step + DELIMITER for step in problem.steps)
    question = Question(f"demo-{number}", problem.question, str(problem.answer), "demo", "demo")
    steps = (
        StepRecord(first, "draft", 0.9),
        StepRecord(second, "target", None, ScoredText("So 1 + 1 = 3.\n\n", 0.1)),
        StepRecord("So 2 + 2 = 5.\n\n", "draft", 0.6),
        StepRecord(third, "draft", 0.7),
        StepRecord("nobody scored it", "target", None),
    )
    found = record(question, steps, correct=True)
    assert are_checked([found])
    before = first + second
    assert scored_steps([found]) == [
        ScoredStep((question.id, first), 0.9, True, True),
        ScoredStep((question.id, first + "So 1 + 1 = 3.\n\n"), 0.1, False, False),
        ScoredStep((question.id, before + "So 2 + 2 = 5.\n\n"), 0.6, True, False),
        ScoredStep((question.id, before + "So 2 + 2 = 5.\n\n" + third), 0.7, True, None),
    ]


def test_other_steps_count_with_their_answer() -> None:
    question = Question("gsm8k-1", "How many?", "7", "gsm8k")
    steps = (
        StepRecord("a", "draft", 0.9),
        StepRecord("b", "target", None, ScoredText("c", 0.1)),
        StepRecord("d", "target", None, ScoredText("e", None)),
        StepRecord("f", "draft", None),
    )
    wrong = record(question, steps, correct=False)
    assert not are_checked([wrong])
    assert scored_steps([wrong]) == [
        ScoredStep(("gsm8k-1", "a"), 0.9, True, False),
        ScoredStep(("gsm8k-1", "ac"), 0.1, False, None),
    ]
