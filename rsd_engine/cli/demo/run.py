"""Solves a few problems in view, then many with the draft alone, the target alone and RSD."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rsd_engine.cli.demo.comparison import AT_ONCE, MODES, Comparison, compare
from rsd_engine.cli.demo.in_view import print_question, solve_in_view
from rsd_engine.cli.demo.numbers import to_json
from rsd_engine.cli.demo.table import held_out, print_comparison
from rsd_engine.cli.engine_options import make_engine
from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.options import MAX_PROBLEMS
from rsd_engine.cli.progress import Progress
from rsd_engine.cli.show import StepView, make_console
from rsd_engine.cli.values import html_file
from rsd_engine.demo.events import FAMILIES
from rsd_engine.demo.problems import Problem, generate

if TYPE_CHECKING:
    from rsd_engine import Engine


@dataclass(frozen=True)
class DemoOptions:
    """The options of the command, which are also the keys of the config table [demo]."""

    problems: int = 3  # to show
    compare: int = 80
    threshold: float = 0.7
    seed: int = 0
    device: str = "auto"
    draft: str | None = None  # None: the demo's, as below
    target: str | None = None
    prm: str | None = None
    quantization: str | Mapping[str, str] | None = None
    json: bool = False
    html: Path | None = None  # not in the config
    verbose: bool = False

    def __post_init__(self) -> None:
        for name in ("problems", "compare"):
            if not 1 <= getattr(self, name) <= MAX_PROBLEMS:
                raise UsageError(
                    f"demo.{name} must be in [1, {MAX_PROBLEMS}], got {getattr(self, name)}"
                )
        if math.isnan(self.threshold):
            raise UsageError(f"threshold must be a number, got {self.threshold}")
        if self.html is not None:
            html_file("--html", self.html)


def run_demo(options: DemoOptions) -> None:
    """Solves the problems and prints everything; FileNotFoundError if a demo model is missing."""
    drawn = generate(options.seed, "test", max(options.problems, options.compare))
    compared = drawn[: options.compare]
    if options.json:
        found = _compare(_make_engine(options), compared, options)
        typer.echo(to_json(found))
    else:
        view = StepView(make_console())
        engine = _show(view, first_of_each_kind(drawn, options.problems), options)
        view.line()
        view.line(
            f"Now {held_out(len(compared))} with the draft alone, the target alone and RSD ...",
            "dim",
        )
        found = _compare(engine, compared, options)
        print_comparison(view, found)
    if options.html is not None:
        from rsd_engine.cli.demo.page import write_page

        write_page(found, options.html)


def _show(view: StepView, problems: Sequence[Problem], options: DemoOptions) -> Engine:
    """Solves problems in view; there is something to read while the engine is made."""
    view.line(
        f"A draft writes each step; below a reward of {options.threshold:g} the target writes "
        "it instead."
    )
    view.legend()
    view.line(
        f"Shown are the first of each kind of the held-out problems of seed {options.seed}, right "
        "or wrong.",
        "dim",
    )
    print_question(view, problems, 0)
    engine = _make_engine(options)
    solve_in_view(engine, view, problems)
    return engine


def first_of_each_kind(problems: Sequence[Problem], count: int) -> list[Problem]:
    """The first problem of each kind, in the order of `FAMILIES`, then the second of each, ..."""
    kinds = [[problem for problem in problems if problem.family == kind] for kind in FAMILIES]
    in_turn = chain.from_iterable(zip_longest(*kinds))
    return [problem for problem in in_turn if problem is not None][:count]


def _make_engine(options: DemoOptions) -> Engine:
    """An engine that does not find in its prefix cache what an earlier run read."""
    from rsd_engine import Threshold
    from rsd_engine.demo import ROLES, checkpoint_dir

    sources: dict[str, Any] = {
        role: getattr(options, role) or checkpoint_dir(role) for role in ROLES
    }
    others = {
        "policy": Threshold(options.threshold),
        "quantization": options.quantization,
        "device": options.device,
        "max_num_seqs": AT_ONCE,
        "enable_prefix_caching": False,
    }
    return make_engine({**sources, **others}, verbose=options.verbose)


def _compare(engine: Engine, problems: Sequence[Problem], options: DemoOptions) -> Comparison:
    with Progress(2 * len(MODES) * len(problems), 0) as bar:
        return compare(engine, problems, bar, seed=options.seed, threshold=options.threshold)
