"""Runs `rsd eval`: everything that has no answer yet, batch by batch, then the table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rsd_engine.cli.errors import FAILED, UsageError, print_stderr
from rsd_engine.cli.eval.asking import Asker, make_folder
from rsd_engine.cli.eval.options import EvalOptions
from rsd_engine.cli.eval.settings import eval_settings
from rsd_engine.cli.eval.show import print_rows
from rsd_engine.cli.results.locked_file import opening
from rsd_engine.cli.results.result_line import ResultsKind
from rsd_engine.cli.results.results_file import ResultsFile
from rsd_engine.evaluate.pictures import draw_pictures, require_matplotlib
from rsd_engine.evaluate.record import read_records
from rsd_engine.evaluate.run import make_batches
from rsd_engine.evaluate.summary import Row, summarise

RESULTS, SUMMARY, PICTURES = "results.jsonl", "summary.json", "pictures"
EVALUATED = ResultsKind(
    "rsd eval",
    settings="run",  # "settings" are those of the method
    place="the list of methods, thresholds, seeds and questions, at answer {number},",
)


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
    make_folder(settings.output)
    items = [item for batch in batches for item in batch]
    with (
        closing(
            ResultsFile(path, EVALUATED, settings.digest, items, overwrite=options.overwrite)
        ) as results,
        Asker(
            settings.engine, settings.chat, settings.questions, verbose=bool(options.verbose)
        ) as asker,
    ):
        asker.ask(results, batches)
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


def _write_summary(path: Path, rows: Sequence[Row]) -> None:
    text = json.dumps([row.to_json() for row in rows], indent=1)
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
