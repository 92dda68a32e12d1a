"""Solve the demo's problems twice: reward-guided, a step at a time, then with the target alone.

Both runs take one problem after the other with the same engine, so their seconds compare.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rsd_engine.cli.demo.summary import Score, print_summary
from rsd_engine.cli.generate.command import make_engine
from rsd_engine.cli.show import StepView, make_console

if TYPE_CHECKING:
    from rsd_engine import Engine, SamplingParams
    from rsd_engine.demo.problems import Problem

_MAX_TOKENS = 256
_MAX_STEP_TOKENS = 64


def run_demo(wanted: dict[str, Any]) -> None:
    """Prints everything; `wanted` has the keys of the config table [demo], all set but models."""
    from rsd_engine.demo.problems import generate

    problems = generate(wanted["seed"], "test", wanted["problems"])
    sources = _sources(wanted)
    view = StepView(make_console())
    view.line(
        f"A draft writes each step; below a reward of {wanted['threshold']:g} the target writes "
        "it instead."
    )
    view.legend()
    _print_question(view, 0, problems)
    engine = _engine(wanted, sources)
    from rsd_engine import SamplingParams

    params = SamplingParams(
        temperature=0.0, max_tokens=_MAX_TOKENS, max_step_tokens=_MAX_STEP_TOKENS
    )
    guided = _solve_in_view(engine, view, problems, params)
    view.line()
    view.line("The same problems with the target alone ...", "dim")
    alone = _solve_alone(engine, problems, params)
    view.line()
    print_summary(view, guided, alone)


def _sources(wanted: dict[str, Any]) -> dict[str, Any]:
    """Where the three models are.

    Raises:
        FileNotFoundError: a demo model is not part of this installation.
    """
    from rsd_engine.demo import ModelRole, checkpoint_dir

    roles: tuple[ModelRole, ...] = ("draft", "target", "prm")
    return {role: wanted.get(role) or checkpoint_dir(role) for role in roles}


def _engine(wanted: dict[str, Any], sources: dict[str, Any]) -> Engine:
    from rsd_engine.steps.policies import Threshold

    arguments = {
        **sources,
        "policy": Threshold(wanted["threshold"]),
        "device": wanted["device"],
        "max_num_seqs": 1,
    }
    return make_engine(arguments, verbose=wanted["verbose"])


def _print_question(view: StepView, index: int, problems: Sequence[Problem]) -> None:
    view.line()
    view.line(f"Problem {index + 1} of {len(problems)}: {problems[index].question}", "bold")


def _solve_in_view(
    engine: Engine, view: StepView, problems: Sequence[Problem], params: SamplingParams
) -> Score:
    from rsd_engine import StepEvent
    from rsd_engine.demo.problems import extract_answer

    score = Score()
    for index, problem in enumerate(problems):
        if index:
            _print_question(view, index, problems)
        started = time.perf_counter()
        stream = engine.stream(_messages(problem), params)
        for event in stream:
            if isinstance(event, StepEvent):
                view.event(event)
        score.seconds += time.perf_counter() - started
        assert stream.output is not None
        right = _book(score, problem, stream.output)
        given = extract_answer(stream.output.outputs[0].text)
        verdict = "right" if right else f"wrong, it is {problem.answer}"
        shown = "no answer" if given is None else f"answer {given}"
        view.line(f"{shown}: {verdict}", "bold green" if right else "bold red")
    return score


def _solve_alone(engine: Engine, problems: Sequence[Problem], params: SamplingParams) -> Score:
    score = Score()
    params = replace(params, mode="target")
    for problem in problems:
        started = time.perf_counter()
        [result] = engine.chat(_messages(problem), params, use_tqdm=False)
        score.seconds += time.perf_counter() - started
        _book(score, problem, result)
    return score


def _messages(problem: Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.question}]


def _book(score: Score, problem: Problem, result: Any) -> bool:
    from rsd_engine.demo.problems import check_answer

    right = check_answer(problem, result.outputs[0].text)
    score.right += right
    score.total += 1
    score.metrics.append(result.metrics)
    return right
