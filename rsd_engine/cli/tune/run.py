"""Runs `rsd tune`: passes over the questions, the recommended threshold, and what it gives.

All answers at a threshold go to one file of the output folder, so a run that was stopped finds
those of its passes there, and one with another budget those that it needs too.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.eval.asking import Asker, make_folder
from rsd_engine.cli.results.result_line import ResultsKind
from rsd_engine.cli.results.results_file import ResultsFile
from rsd_engine.cli.tune.options import TuneOptions
from rsd_engine.cli.tune.settings import TuneSettings, tune_settings
from rsd_engine.cli.tune.show import print_json, print_tuned
from rsd_engine.evaluate.methods import Trial
from rsd_engine.evaluate.record import Question, Record, read_records
from rsd_engine.evaluate.run import in_batches, make_items
from rsd_engine.evaluate.tuning import Expected, Sweep, Trajectory, find_threshold, trajectory
from rsd_engine.steps.policies import Threshold

TUNED = ResultsKind("rsd tune", settings="run", place="the list of questions, at number {number},")
_SHARES = tuple(tenths / 10 for tenths in range(1, 10))  # that are swept for the table


def run_tune(options: TuneOptions) -> None:
    """Finds the threshold, tries it on the held-out questions, prints both.

    Raises:
        UsageError: an option is not allowed, the folder holds the results of another run, or no
            question was answered.
    """
    settings = tune_settings(options)
    everything = [*settings.questions, *settings.held_out]
    with Asker(settings.engine, settings.chat, everything, verbose=bool(options.verbose)) as asker:
        tuner = _Tuner(asker, settings, options)
        threshold, sweep = tuner.find()
        came = tuner.try_out(threshold) if settings.held_out else None
    levels = sorted({*map(sweep.largest_threshold, _SHARES), threshold})
    show = print_json if options.json else print_tuned
    show(options.budget, sweep.at(threshold), came, [sweep.at(level) for level in levels])


class _Tuner:
    """Finds a threshold, and tries it."""

    def __init__(self, asker: Asker, settings: TuneSettings, options: TuneOptions) -> None:
        self._asker, self._settings, self._options = asker, settings, options
        self._written: set[Path] = set()

    def find(self) -> tuple[float, Sweep]:
        """The threshold for the budget, and what it was found from."""
        settings, budget = self._settings, self._options.budget
        if settings.records:
            sweep = Sweep(_trajectories(settings.records))
            return sweep.largest_threshold(budget), sweep
        ids = [question.id for question in settings.questions]
        return find_threshold(self._pass, ids, budget, settings.start, self._options.passes)

    def try_out(self, threshold: float) -> Expected:
        """What comes of a threshold on the held-out questions."""
        questions = self._settings.held_out
        ids = {question.id for question in questions}
        return Sweep(self._answers("held_out", questions, ids, threshold)).at(threshold)

    def _pass(self, ids: Sequence[str], threshold: float) -> list[Trajectory]:
        return self._answers("threshold", self._settings.questions, set(ids), threshold)

    def _answers(
        self, name: str, questions: Sequence[Question], ids: Container[str], threshold: float
    ) -> list[Trajectory]:
        """The answers to some of the questions, those in the file of the threshold not asked."""
        settings = self._settings
        make_folder(settings.output)
        path = settings.output / f"{name}-{threshold!r}.jsonl"
        params = replace(settings.params, mode="rsd", policy=Threshold(threshold))
        items = make_items(
            Trial("rsd", {"threshold": threshold}, params), self._options.seed, questions
        )
        overwrite = self._options.overwrite and path not in self._written
        with closing(
            ResultsFile(path, TUNED, settings.digest, items, overwrite=overwrite)
        ) as results:
            self._asker.ask(results, in_batches([one for one in items if one.question.id in ids]))
        self._written.add(path)
        records = read_records(path.read_text(encoding="utf-8"))
        return _trajectories([record for record in records if record.question.id in ids])


def _trajectories(records: Sequence[Record]) -> list[Trajectory]:
    """Those of the answers that no error ended."""
    answered = [record for record in records if record.error is None]
    if not answered:
        raise UsageError("no question has an answer, so there is nothing to find a threshold from")
    return [trajectory(record) for record in answered]
