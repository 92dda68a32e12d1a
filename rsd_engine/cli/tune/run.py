"""Runs `rsd tune`: passes over the questions, the recommended threshold, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from rsd_engine.cli.engine_options import make_engine
from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.progress import Progress
from rsd_engine.cli.tune.options import TuneOptions
from rsd_engine.cli.tune.settings import TuneSettings, tune_settings
from rsd_engine.cli.tune.show import print_json, print_tuned
from rsd_engine.evaluate.methods import Trial
from rsd_engine.evaluate.record import Question, Record
from rsd_engine.evaluate.run import Examiner, make_batches
from rsd_engine.evaluate.tuning import Expected, Sweep, Trajectory, find_threshold, trajectory
from rsd_engine.steps.policies import Threshold

_SHARES = tuple(tenths / 10 for tenths in range(1, 10))  # that are swept for the table


def run_tune(options: TuneOptions) -> None:
    """Finds the threshold, tries it on the held-out questions, prints both.

    Raises:
        UsageError: an option is not allowed, or no question was answered.
    """
    settings = tune_settings(options)
    with ExitStack() as stack:
        asker = None
        if settings.engine is not None:
            progress = stack.enter_context(Progress(0, 0))
            progress.status("loading the models")
            engine = stack.enter_context(
                make_engine(settings.engine, verbose=bool(options.verbose))
            )
            everything = [*settings.questions, *settings.held_out]
            asker = _Asker(Examiner(engine, settings.chat, everything), settings, options, progress)
        threshold, sweep = _find(settings, options, asker)
        came = asker.try_out(settings.held_out, threshold) if asker and settings.held_out else None
    levels = sorted({*map(sweep.largest_threshold, _SHARES), threshold})
    show = print_json if options.json else print_tuned
    show(options.budget, sweep.at(threshold), came, [sweep.at(level) for level in levels])


def _find(
    settings: TuneSettings, options: TuneOptions, asker: _Asker | None
) -> tuple[float, Sweep]:
    if asker is not None and settings.questions:
        ids = [question.id for question in settings.questions]
        return find_threshold(asker.ask, ids, options.budget, settings.start, options.passes)
    sweep = Sweep(_trajectories(settings.records))
    return sweep.largest_threshold(options.budget), sweep


class _Asker:
    """Answers questions with RSD at a threshold."""

    def __init__(
        self,
        examiner: Examiner,
        settings: TuneSettings,
        options: TuneOptions,
        progress: Progress,
    ) -> None:
        self._examiner = examiner
        self._params = settings.params
        self._seed = options.seed
        self._questions = {question.id: question for question in settings.questions}
        self._progress = progress

    def ask(self, ids: Sequence[str], threshold: float) -> list[Trajectory]:
        """One pass over some of the questions."""
        questions = [self._questions[one] for one in ids]
        return _trajectories(self._answer(questions, threshold, "finding"))

    def try_out(self, questions: Sequence[Question], threshold: float) -> Expected:
        """What came of a threshold."""
        return Sweep(_trajectories(self._answer(questions, threshold, "held out"))).at(threshold)

    def _answer(self, questions: Sequence[Question], threshold: float, what: str) -> list[Record]:
        params = replace(self._params, mode="rsd", policy=Threshold(threshold))
        trial = Trial("rsd", {"threshold": threshold}, params)
        self._examiner.check([trial])
        self._progress.begin(f"{what}, threshold {threshold:g}", len(questions))
        batches = make_batches([trial], [self._seed], questions)
        return [one for batch in batches for one in self._examiner.answer(batch, self._notice)]

    def _notice(self, record: Record, metrics: object) -> None:
        if record.error is not None:
            self._progress.note(f"{record.question.id}: {record.error}")
        self._progress.advance(metrics)


def _trajectories(records: Sequence[Record]) -> list[Trajectory]:
    """Those of the answers that no error ended."""
    answered = [record for record in records if record.error is None]
    if not answered:
        raise UsageError("no question has an answer, so there is nothing to find a threshold from")
    return [trajectory(record) for record in answered]
