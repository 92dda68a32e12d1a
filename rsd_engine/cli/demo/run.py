"""Solves the demo's problems twice: with RSD, step by step, and with the target alone.

Both runs take one problem after the other on the same engine, so their seconds compare.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rsd_engine.cli.demo.summary import Score, print_summary
from rsd_engine.cli.engine_options import make_engine
from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.options import MAX_PROBLEMS
from rsd_engine.cli.show import StepView, make_console

if TYPE_CHECKING:
    from rsd_engine import Engine, RequestOutput, SamplingParams
    from rsd_engine.demo.problems import Problem

_MAX_TOKENS = 256
_MAX_STEP_TOKENS = 64


@dataclass(frozen=True)
class DemoOptions:
    """The options of the command, which are also the keys of the config table [demo]."""

    problems: int = 3
    threshold: float = 0.7
    seed: int = 0
    device: str = "auto"
    draft: str | None = None  # None: the demo's, as below
    target: str | None = None
    prm: str | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.problems <= MAX_PROBLEMS:
            raise UsageError(f"demo.problems must be in [1, {MAX_PROBLEMS}], got {self.problems}")
        if math.isnan(self.threshold):
            raise UsageError(f"threshold must be a number, got {self.threshold}")


def run_demo(options: DemoOptions) -> None:
    """Solves the problems and prints everything; FileNotFoundError if a demo model is missing."""
    from rsd_engine.demo import ROLES, checkpoint_dir
    from rsd_engine.demo.problems import generate

    problems = generate(options.seed, "test", options.problems)
    sources: dict[str, Any] = {
        role: getattr(options, role) or checkpoint_dir(role) for role in ROLES
    }
    view = StepView(make_console())
    view.line(
        f"A draft writes each step; below a reward of {options.threshold:g} the target writes "
        "it instead."
    )
    view.legend()
    _print_question(view, 0, problems)
    from rsd_engine import SamplingParams, Threshold

    policy = Threshold(options.threshold)
    others = {"policy": policy, "device": options.device, "max_num_seqs": 1}
    engine = make_engine({**sources, **others}, verbose=options.verbose)

    params = SamplingParams(
        temperature=0.0, max_tokens=_MAX_TOKENS, max_step_tokens=_MAX_STEP_TOKENS
    )
    # The first chat starts the process that renders templates; neither run is to pay for it.
    engine.chat(_messages(problems[0]), replace(params, max_tokens=1), use_tqdm=False)
    guided = _solve_in_view(engine, view, problems, params)
    view.line()
    view.line("The same problems with the target alone ...", "dim")
    alone = _solve_alone(engine, problems, params)
    view.line()
    print_summary(view, guided, alone)


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
        right = _count(score, problem, stream.output)
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
        _count(score, problem, result)
    return score


def _messages(problem: Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.question}]


def _count(score: Score, problem: Problem, result: RequestOutput) -> bool:
    """Adds a result to the score; returns whether its answer is right."""
    from rsd_engine.demo.problems import check_answer

    right = check_answer(problem, result.outputs[0].text)
    score.right += right
    score.total += 1
    score.metrics.append(result.metrics)
    return right
