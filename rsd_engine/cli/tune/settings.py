"""What `rsd tune` runs with, checked before any work starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.eval.settings import (
    answer_params,
    default_threshold,
    model_arguments,
    question_chat,
    settings_digest,
)
from rsd_engine.cli.tune.options import TuneOptions
from rsd_engine.engine.chat.questions import ChatSettings
from rsd_engine.evaluate.answers import answers_of
from rsd_engine.evaluate.questions import DEMO, load_questions
from rsd_engine.evaluate.record import Question, Record, read_records
from rsd_engine.evaluate.statistics import require_scipy
from rsd_engine.evaluate.tuning import is_by_threshold
from rsd_engine.sampling_params import MAX_SEED, SamplingParams


@dataclass(frozen=True)
class TuneSettings:
    """A run.

    Attributes:
        engine: arguments of `Engine`.
        params: of each request, but for policy and seed.
        digest: of all settings that decide the answers, thresholds and seed aside.
        start: threshold of the first pass.
        questions: to find the threshold on; empty where `records` are given in their place.
        held_out: to try it on; may be empty.
    """

    engine: dict[str, Any]
    params: SamplingParams
    chat: ChatSettings
    digest: str
    start: float
    questions: list[Question]
    held_out: list[Question]
    records: list[Record]
    output: Path  # of no use if nothing is asked


def tune_settings(options: TuneOptions) -> TuneSettings:
    """The settings of a run.

    Raises:
        UsageError: an option is not allowed, or a file cannot be read.
        ImportError: an optional package is missing.
    """
    _check(options)
    engine = model_arguments(options)
    if "policy" in engine:
        raise UsageError("policy is given; here it is a threshold, which is what is looked for")
    asked = [options.held_out] if options.records else [options.questions, options.held_out]
    is_demo = all(spec.partition(":")[0] == DEMO for spec in asked if spec)
    try:
        params = answer_params(options, is_demo=is_demo)
        questions = [] if options.records else load_questions(options.questions)
        held_out = load_questions(options.held_out) if options.held_out else []
        start = default_threshold(engine) if options.start is None else options.start
    except ValueError as error:
        raise UsageError(str(error)) from None
    require_scipy()
    for kind in {question.kind for question in [*questions, *held_out]}:
        answers_of(kind)  # what it needs is there
    records = _records(options)
    _check_apart(questions or [record.question for record in records], held_out)
    chat = question_chat(options, is_demo=is_demo)
    return TuneSettings(
        engine=engine,
        params=params,
        chat=chat,
        digest=settings_digest(engine, [params], chat),
        start=start,
        questions=questions,
        held_out=held_out,
        records=records,
        output=options.output or Path(),
    )


def _check(options: TuneOptions) -> None:
    if options.output is None and (options.held_out or not options.records):
        raise UsageError("--output is missing; give a folder for the answers")
    if not 0 < options.budget < 1:
        raise UsageError(
            f"--budget must be a share between 0 and 1, such as 0.3, got {options.budget:g}"
        )
    if options.seed > MAX_SEED:
        raise UsageError(f"--seed must be in [0, {MAX_SEED}], got {options.seed}")
    if options.start is not None and not -1 <= options.start <= 1:
        raise UsageError(f"--start must be in [-1, 1], as rewards are, got {options.start:g}")


def _records(options: TuneOptions) -> list[Record]:
    if options.records is None:
        return []
    try:
        found = read_records(options.records.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {options.records}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{options.records}: {error}") from None
    decided = [record for record in found if is_by_threshold(record)]
    if not decided:
        raise UsageError(
            f"{options.records} has no answers of rsd at a threshold; evaluate with --methods rsd"
        )
    return decided


def _check_apart(questions: list[Question], held_out: list[Question]) -> None:
    """What is tried on the questions that it was found on looks better than it is."""
    both = {question.text for question in questions} & {question.text for question in held_out}
    if both:
        raise UsageError(
            f"--held-out has {len(both)} of the questions that the threshold is found on; give "
            "others, such as --questions demo:200 --held-out demo:201-300"
        )
