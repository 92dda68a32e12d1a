"""Asks an engine what has no answer yet, and writes every answer to the results at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from rsd_engine.cli.engine_options import make_engine
from rsd_engine.cli.errors import UsageError, caused_by_interrupt, print_stderr
from rsd_engine.cli.progress import Progress
from rsd_engine.cli.results.locked_file import opening
from rsd_engine.cli.results.results_file import ResultsFile
from rsd_engine.engine.chat.questions import ChatSettings
from rsd_engine.evaluate.record import Question, Record, label
from rsd_engine.evaluate.run import Batch, Examiner, by_method

_WARM_UP = 2  # questions, for each method


def make_folder(output: Path) -> None:
    """Makes the folder of the results, if it is not there.

    Raises:
        UsageError: it cannot be one.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"--output must be a folder, got {output}, which is none")
    with opening(output):
        output.mkdir(parents=True, exist_ok=True)


class Asker:
    """Asks questions; its engine is made when there is something to ask. A context manager.

    Args:
        arguments: of `Engine`.
        chat: how questions become prompts.
        questions: all that it will be asked.
        verbose: show the engine's log.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        chat: ChatSettings,
        questions: Iterable[Question],
        *,
        verbose: bool,
    ) -> None:
        self._arguments, self._verbose = arguments, verbose
        self._chat, self._questions = chat, list(questions)
        self._stack = ExitStack()
        self._progress = Progress(0, 0)
        self._examiner: Examiner | None = None

    def __enter__(self) -> Asker:
        self._stack.enter_context(self._progress)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def ask(self, results: ResultsFile, batches: Sequence[Batch]) -> None:
        """Asks the batches that lack an answer; then `results` has one for each item.

        Raises:
            ValueError: the engine cannot do what a method asks.
        """
        done = {item.number for batch in batches for item in batch} & results.done
        total = sum(map(len, batches))
        todo = [batch for batch in batches if any(item.number not in done for item in batch)]
        if done:
            rest = "going on" if todo else "nothing to do"
            self._progress.note(f"{results.path}: {len(done)} of {total} answers are there, {rest}")
        try:
            if todo:
                self._progress.begin("loading the models", total, total - sum(map(len, todo)))
                self._answer(results, todo)
            results.finish()
        except BaseException as error:
            if caused_by_interrupt(error):
                print_stderr(
                    f"{results.path} has {len(results.done)} of {total} answers; give the same "
                    "command to resume"
                )
            raise

    def _answer(self, results: ResultsFile, todo: Sequence[Batch]) -> None:
        examiner = self._made()
        groups = list(by_method(todo))
        examiner.check(trial for trial, _, _ in groups)
        for trial, seed, batches in groups:
            examiner.warm_up(batches[0][:_WARM_UP])
            name = f"{label(trial.method, trial.settings)}, seed {seed}"
            self._progress.status(name)
            watch = _Watch(self._progress)
            for batch in batches:
                records = examiner.answer(batch, watch.notice)
                for item, record in zip(batch, records, strict=True):
                    if item.number not in results.done:
                        results.append(item, record.to_json())
            self._progress.note(f"{name}: {watch.right} of {watch.total} right")

    def _made(self) -> Examiner:
        if self._examiner is None:
            engine = self._stack.enter_context(make_engine(self._arguments, verbose=self._verbose))
            self._examiner = Examiner(engine, self._chat, self._questions)
        return self._examiner


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
