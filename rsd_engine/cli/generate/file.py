"""`rsd generate` over a JSONL file: every line is answered once, or its error reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsd_engine.cli.config_file import sampling_values
from rsd_engine.cli.errors import (
    EXPECTED,
    FAILED,
    UsageError,
    caused_by_interrupt,
    error_line,
    print_stderr,
)
from rsd_engine.cli.generate.questions import (
    InputLine,
    Question,
    parse_question,
    read_lines,
)
from rsd_engine.cli.generate.settings import RunSettings
from rsd_engine.cli.generate.sinks import Sink, open_sink
from rsd_engine.cli.progress import Progress
from rsd_engine.engine.chat.questions import question_seed

if TYPE_CHECKING:
    from rsd_engine import Engine, SamplingParams

_CHUNK = 1024  # questions passed to the engine at once; slots idle only at the end of a chunk


@dataclass
class _Run:
    """The state of a run over the lines that have no result yet."""

    sink: Sink
    progress: Progress
    source: Path
    failed: int = 0
    answered: int = 0
    metrics: Any = None

    def fail(self, line: InputLine, identity: str | int | None, message: str) -> None:
        """Reports a line's error on stderr and in the results."""
        self.progress.note(f"{self.source}, line {line.number}: {message}")
        named = {} if identity is None else {"id": identity}
        self.sink.append(line, {**named, "error": message})
        self.failed += 1
        self.progress.advance(None)

    def finish(self, question: Question, result: Any) -> None:
        from rsd_engine.cli.generate.records import result_record

        record = result_record(result)
        named = {} if question.id is None else {"id": question.id}
        self.sink.append(question.line, {**named, **record})
        if "error" in record:
            self.failed += 1
            self.progress.note(f"{self.source}, line {question.line.number}: {record['error']}")
        else:
            self.answered += 1
        self.metrics = result.metrics if self.metrics is None else self.metrics + result.metrics
        self.progress.advance(result.metrics)


def run_file(settings: RunSettings, source: Path, output: Path | None, *, overwrite: bool) -> int:
    """Answers all lines of `source`; returns the exit code."""
    lines = read_lines(source)
    if output is not None and str(source) != "-" and _same_file(source, output):
        raise UsageError(f"--input and --output are the same file, {source}")
    with closing(open_sink(output, settings.digest, lines, overwrite=overwrite)) as sink:
        return _run_lines(settings, sink, lines, source, output)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist
        return False


def _run_lines(
    settings: RunSettings, sink: Sink, lines: list[InputLine], source: Path, output: Path | None
) -> int:
    done = sink.done
    if not lines:
        print_stderr(f"{source}: no questions in it")
    todo = [line for line in lines if line.number not in done]
    if done:
        rest = "going on" if todo else "nothing to do"
        print_stderr(f"{output}: {len(done)} of {len(lines)} lines have their results, {rest}")
    with Progress(len(lines), len(done)) as progress:
        run = _Run(sink, progress, source)
        try:
            _answer_all(settings, run, todo)
            sink.finish()
        except BaseException as error:
            if caused_by_interrupt(error):
                _report_stop(len(done) + run.answered, len(lines), output)
            raise
    return _report_end(run, len(done), len(lines))


def _answer_all(settings: RunSettings, run: _Run, todo: Sequence[InputLine]) -> None:
    questions = list(_questions(run, todo))
    if not questions:
        return
    run.progress.status("loading the models")
    engine = settings.make_engine()
    run.progress.status("questions")
    for start in range(0, len(questions), _CHUNK):
        _answer(settings, run, engine, questions[start : start + _CHUNK])


def _questions(run: _Run, lines: Sequence[InputLine]) -> Iterator[Question]:
    for line in lines:
        try:
            yield parse_question(line)
        except ValueError as error:
            run.fail(line, None, str(error))


def _answer(settings: RunSettings, run: _Run, engine: Engine, questions: list[Question]) -> None:
    chat = settings.chat.of(engine.get_tokenizer())
    ready, prompts, params = [], [], []
    for question in questions:
        prompt = chat.engine_prompt(question.given)
        try:
            wanted = _params(engine, settings, question)
            # The engine starts all requests or none, so each question is tried alone first.
            engine.stream(prompt, wanted).close()
        except (*EXPECTED, TypeError) as error:
            run.fail(question.line, question.id, error_line(error))
            continue
        ready.append(question)
        prompts.append(prompt)
        params.append(wanted)
    for index, result in engine.as_completed(prompts, params):
        run.finish(ready[index], result)


def _params(engine: Engine, settings: RunSettings, question: Question) -> SamplingParams:
    seed = question_seed(settings.sampling.get("seed") or 0, question.line.number)
    own = sampling_values(question.params) if question.params else {}
    values = {**settings.sampling, "seed": seed, **own}
    return replace(engine.get_default_sampling_params(), **values)


def _report_stop(done: int, total: int, output: Path | None) -> None:
    if output is None:
        print_stderr(f"stopped after {done} of {total} lines; with --output a run can be resumed")
    else:
        print_stderr(f"{output} has {done} of {total} results; give the same command to resume")


def _report_end(run: _Run, before: int, total: int) -> int:
    run.progress.summary(run.metrics)
    if run.failed:
        print_stderr(f"{run.failed} of {total} lines failed; {before + run.answered} have results")
    return FAILED if run.failed else 0
