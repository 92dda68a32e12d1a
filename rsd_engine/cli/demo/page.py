"""Writes the answers of a comparison as the page that `rsd trace` makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rsd_engine.cli.demo.comparison import Comparison
from rsd_engine.cli.errors import print_stderr
from rsd_engine.demo.problems import Problem, extract_answer
from rsd_engine.evaluate.record import Counts, Question, Record, RoleSeconds, step_records
from rsd_engine.evaluate.trace.page import Run, make_page

if TYPE_CHECKING:
    from rsd_engine import RequestOutput
    from rsd_engine.sampling_params import ModeName


def write_page(found: Comparison, path: Path) -> None:
    """Writes the page: those solved one at a time, RSD's first, for the page opens with them."""
    records = [
        _record(found, mode, number, problem, result)
        for mode, measured in reversed(found.modes.items())
        for number, (problem, result) in enumerate(
            zip(found.problems, measured.results, strict=True)
        )
    ]
    page = make_page([Run("rsd demo", [record.to_json() for record in records])], "rsd demo")
    path.write_text(page.html, encoding="utf-8")
    print_stderr(f"{len(records)} answers in {path} ({len(page.html) / 1e6:.1f} MB)")


def _record(
    found: Comparison, mode: ModeName, number: int, problem: Problem, result: RequestOutput
) -> Record:
    [output] = result.outputs
    answer = extract_answer(output.text)
    return Record(
        question=Question(
            f"demo-{number}", problem.question, str(problem.answer), "demo", kind="demo"
        ),
        method=mode,
        settings={"threshold": found.threshold} if mode == "rsd" else {},
        seed=found.seed,
        text=output.text,
        found=None if answer is None else str(answer),
        correct=answer == problem.answer,
        finish_reason=output.finish_reason,
        counts=Counts.of(result.metrics),
        seconds=result.metrics.seconds,
        role_seconds=RoleSeconds.of(result.metrics),
        steps=step_records(output),
        error=output.error,
    )
