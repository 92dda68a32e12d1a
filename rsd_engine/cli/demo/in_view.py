"""Solves problems with RSD, step by step, and says what the models alone answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rsd_engine.cli.demo.comparison import demo_params, messages
from rsd_engine.cli.show import StepView
from rsd_engine.demo.problems import Problem, extract_answer

if TYPE_CHECKING:
    from rsd_engine import Engine
    from rsd_engine.sampling_params import ModeName


def print_question(view: StepView, problems: Sequence[Problem], index: int) -> None:
    """Prints which problem it is, its kind and its question."""
    problem = problems[index]
    view.line()
    view.line(
        f"Problem {index + 1} of {len(problems)} ({problem.family}): {problem.question}", "bold"
    )


def solve_in_view(engine: Engine, view: StepView, problems: Sequence[Problem]) -> None:
    """Solves problems one after the other; the first one's question is printed already."""
    for index, problem in enumerate(problems):
        if index:
            print_question(view, problems, index)
        _solve(engine, view, problem)


def _solve(engine: Engine, view: StepView, problem: Problem) -> None:
    from rsd_engine import StepEvent

    stream = engine.stream(messages(problem), demo_params("rsd"))
    for event in stream:
        if isinstance(event, StepEvent):
            view.event(event)
    assert stream.output is not None
    found = extract_answer(stream.output.outputs[0].text)
    right = found == problem.answer
    shown = "no answer" if found is None else f"answer {found}"
    verdict = "right" if right else f"wrong, it is {problem.answer}"
    draft, target = _alone(engine, problem, "draft"), _alone(engine, problem, "target")
    view.line(
        f"{shown}: {verdict} (draft alone: {draft}, target alone: {target})",
        "bold green" if right else "bold red",
    )


def _alone(engine: Engine, problem: Problem, mode: ModeName) -> str:
    [result] = engine.chat(messages(problem), demo_params(mode), use_tqdm=False)
    found = extract_answer(result.outputs[0].text)
    return "none" if found is None else str(found)
