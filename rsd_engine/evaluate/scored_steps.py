"""The draft's steps that were scored: their rewards, and whether they were kept and are right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rsd_engine.demo.problems import Problem, check_step, generate
from rsd_engine.evaluate.questions import DEMO
from rsd_engine.evaluate.record import Record, StepRecord


@dataclass(frozen=True)
class ScoredStep:
    """What the draft wrote.

    Attributes:
        context: id of the question, and the answer up to the end of the step; two answers to a
            question often begin alike.
        kept: whether it was, or rejected.
        right: of the demo's questions whether the step itself is right, given that all before it
            are, and None behind a wrong one. Of others, where nobody can tell, whether the answer
            that a kept step is part of is right, and None if it was rejected.
    """

    context: tuple[str, str]
    reward: float
    kept: bool
    right: bool | None


def has_policy(record: Record) -> bool:
    """Whether a policy decided on each step of the draft, as in RSD.

    Of methods that choose between candidates or samples by reward only the best are left, which
    says nothing about the rest.
    """
    settings = record.settings.keys()
    return bool(settings & {"threshold", "policy"}) and "candidates" not in settings


def scored_steps(
    records: Iterable[Record], problems: Iterable[Problem] | None = None
) -> list[ScoredStep]:
    """All scored steps of the answers that a policy decided on, in order.

    Args:
        problems: behind the demo's questions; None for those that `load_questions` takes.
    """
    given = [record for record in records if has_policy(record)]
    known = _problems(given) if problems is None else problems
    by_question = {problem.question: problem for problem in known}
    return [step for record in given for step in _of_answer(record, by_question)]


def are_checked(records: Iterable[Record]) -> bool:
    """Whether steps are checked themselves; else by the answers that they are part of."""
    return all(record.question.kind == DEMO for record in records)


def _of_answer(record: Record, problems: Mapping[str, Problem]) -> Iterator[ScoredStep]:
    problem = problems.get(record.question.text)
    on_track, before = True, ""
    for index, step in enumerate(record.steps):
        draft = _draft(step)
        if draft is not None:
            text, reward, kept = draft
            right = record.correct if kept else None
            if problem is not None:
                right = check_step(problem, index, text) if on_track else None
            yield ScoredStep((record.question.id, before + text), reward, kept, right)
        before += step.text
        if problem is not None:
            on_track = on_track and check_step(problem, index, step.text)


def _draft(step: StepRecord) -> tuple[str, float, bool] | None:
    """What the draft wrote in a step's place, its reward, and whether it was kept."""
    rejected = step.rejected
    if rejected is not None:
        return None if rejected.reward is None else (rejected.text, rejected.reward, False)
    if step.source == "target" or step.reward is None:
        return None
    return step.text, step.reward, True


def _problems(records: Iterable[Record]) -> list[Problem]:
    """Those of the demo's questions."""
    ids = (record.question.id for record in records if record.question.kind == DEMO)
    numbers = [int(number) for one in ids if (number := one.rpartition("-")[2]).isdecimal()]
    return generate(0, "test", max(numbers) + 1) if numbers else []
