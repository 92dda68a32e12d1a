"""Runs `rsd eval`: everything that has no answer yet, batch by batch, then the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rsd_engine.cli.engine_options import make_engine
from rsd_engine.cli.errors import FAILED, UsageError, caused_by_interrupt, print_stderr
from rsd_engine.cli.eval.options import EvalOptions
from rsd_engine.cli.eval.settings import EvalSettings, eval_settings
from rsd_engine.cli.eval.show import print_rows
from rsd_engine.cli.progress import Progress
from rsd_engine.cli.results.locked_file import opening
from rsd_engine.cli.results.result_line import ResultsKind
from rsd_engine.cli.results.results_file import ResultsFile
from rsd_engine.evaluate.pictures import draw_pictures, require_matplotlib
from rsd_engine.evaluate.record import Record, label, read_records
from rsd_engine.evaluate.run import Batch, Examiner, by_method, make_batches
from rsd_engine.evaluate.summary import Row, summarise

RESULTS, SUMMARY, PICTURES = "results.jsonl", "summary.json", "pictures"
EVALUATED = ResultsKind(
    "rsd eval",
    settings="run",  # "settings" are those of the method
    place="the list of methods, thresholds, seeds and questions, at answer {number},",
)
_WARM_UP = 2  # questions, for each method


def run_eval(options: EvalOptions) -> int:
    """Answers what is not answered, prints the table; returns the exit code.

    Raises:
        UsageError: an option is not allowed, or the folder holds the results of another run.
    """
    settings = eval_settings(options)
    if options.pictures:
        require_matplotlib()
    batches = make_batches(settings.trials, settings.seeds, settings.questions)
    path = settings.output / RESULTS
    if settings.output.exists() and not settings.output.is_dir():
        raise UsageError(f"--output must be a folder, got {settings.output}, which is none")
    with opening(settings.output):
        settings.output.mkdir(parents=True, exist_ok=True)
    items = [item for batch in batches for item in batch]
    with closing(
        ResultsFile(path, EVALUATED, settings.digest, items, overwrite=options.overwrite)
    ) as results:
        _answer_all(settings, results, batches, verbose=bool(options.verbose))
    records = read_records(path.read_text(encoding="utf-8"))
    rows = summarise(records)
    _write_summary(settings.output / SUMMARY, rows)
    print_rows(rows)
    if options.pictures:
        with opening(settings.output / PICTURES):
            draw_pictures(records, settings.output / PICTURES)
    failed = sum(row.failed for row in rows)
    if failed:
        print_stderr(f"{failed} of {len(items)} answers failed; {path} says why")
    return FAILED if failed else 0


def _answer_all(
    settings: EvalSettings, results: ResultsFile, batches: Sequence[Batch], *, verbose: bool
) -> None:
    done = results.done
    total = sum(map(len, batches))
    todo = [batch for batch in batches if any(item.number not in done for item in batch)]
    if done:
        rest = "going on" if todo else "nothing to do"
        print_stderr(f"{results.path}: {len(done)} of {total} answers are there, {rest}")
    with Progress(total, total - sum(map(len, todo))) as progress:
        try:
            if todo:
                progress.status("loading the models")
                with make_engine(settings.engine, verbose=verbose) as engine:
                    examiner = Examiner(engine, settings.chat, settings.questions)
                    examiner.check(settings.trials)
                    _answer(examiner, results, todo, progress)
            results.finish()
        except BaseException as error:
            if caused_by_interrupt(error):
                print_stderr(
                    f"{results.path} has {len(results.done)} of {total} answers; give the same "
                    "command to resume"
                )
            raise


def _answer(
    examiner: Examiner, results: ResultsFile, todo: Sequence[Batch], progress: Progress
) -> None:
    for trial, seed, batches in by_method(todo):
        examiner.warm_up(batches[0][:_WARM_UP])
        name = f"{label(trial.method, trial.settings)}, seed {seed}"
        progress.status(name)
        watch = _Watch(progress)
        for batch in batches:
            records = examiner.answer(batch, watch.notice)
            for item, record in zip(batch, records, strict=True):
                if item.number not in results.done:
                    results.append(item, record.to_json())
        progress.note(f"{name}: {watch.right} of {watch.total} right")


class _Watch:
    """Shows the accuracy of a method while it runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.right = self.total = 0

    def notice(self, record: Record, metrics: Any) -> None:
        self.right += record.correct
        self.total += 1
        if record.error is not None:
            self._progress.note(f"{record.label}, {record.question.id}: {record.error}")
        self._progress.advance(metrics, f"{self.right / self.total:.0%} right, ")


def _write_summary(path: Path, rows: Sequence[Row]) -> None:
    text = json.dumps([row.to_json() for row in rows], indent=1)
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
