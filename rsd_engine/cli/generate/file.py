"""`rsd generate` over a JSONL file: every line is answered or reported, and nothing twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rsd_engine.cli.config_file import sampling_values
from rsd_engine.cli.errors import FAILED, UsageError, caused_by_interrupt, say
from rsd_engine.cli.generate.questions import (
    InputLine,
    Question,
    engine_prompt,
    line_seed,
    parse_question,
    read_lines,
)
from rsd_engine.cli.generate.results_file import ResultsFile, encode_record
from rsd_engine.cli.progress import Progress

if TYPE_CHECKING:
    from rsd_engine import Engine, SamplingParams

_CHUNK = 1024  # questions handed to the engine at once; the slots run dry only at a chunk's end


@dataclass(frozen=True)
class Asked:
    """What is the same for every line of a run."""

    make_engine: Callable[[], Engine]
    sampling: dict[str, Any]  # fields of SamplingParams, from the command line and the config
    chat: bool | None  # None: if the tokenizer has a template
    system: str | None
    settings: str  # digest of all that decides the results


class _Sink(Protocol):
    def append(self, line: InputLine, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class _Stdout:
    """Results on stdout; there is nothing to go on from."""

    def __init__(self, settings: str) -> None:
        self._settings = settings

    def append(self, line: InputLine, record: dict[str, Any]) -> None:
        sys.stdout.buffer.write(encode_record(line, self._settings, record))
        sys.stdout.buffer.flush()

    def close(self) -> None:
        return


@dataclass
class _Run:
    """One pass over the lines that have no result yet."""

    sink: _Sink
    progress: Progress
    source: Path
    failed: int = 0
    answered: int = 0
    metrics: Any = None

    def fail(self, line: InputLine, identity: str | int | None, message: str) -> None:
        """Reports a line on stderr and in the results."""
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


def run_file(asked: Asked, source: Path, output: Path | None, *, overwrite: bool) -> int:
    """Answers all lines of `source`; returns the exit code."""
    if output is not None and output.exists() and str(source) != "-" and output.samefile(source):
        raise UsageError(f"--input and --output are the same file, {source}")
    lines = read_lines(source)
    sink: _Sink = _Stdout(asked.settings)
    done: frozenset[int] = frozenset()
    if output is not None:
        sink = results = ResultsFile(output, asked.settings, lines, overwrite=overwrite)
        done = results.done
    if not lines:
        say(f"{source}: no questions in it")
    todo = [line for line in lines if line.number not in done]
    if done:
        rest = "going on" if todo else "nothing to do"
        say(f"{output}: {len(done)} of {len(lines)} lines have their results, {rest}")
    with Progress(len(lines), len(done)) as progress:
        run = _Run(sink, progress, source)
        try:
            _answer_all(asked, run, todo)
            sink.close()
        except BaseException as error:
            if caused_by_interrupt(error):
                _say_stopped(len(done) + run.answered, len(lines), output)
            raise
    return _say_done(run, len(done), len(lines))


def _answer_all(asked: Asked, run: _Run, todo: Sequence[InputLine]) -> None:
    questions = list(_questions(run, todo))
    if not questions:
        return
    run.progress.status("loading the models")
    engine = asked.make_engine()
    run.progress.status("questions")
    for start in range(0, len(questions), _CHUNK):
        _answer(asked, run, engine, questions[start : start + _CHUNK])


def _questions(run: _Run, lines: Sequence[InputLine]) -> Iterator[Question]:
    for line in lines:
        try:
            yield parse_question(line)
        except ValueError as error:
            run.fail(line, None, str(error))


def _answer(asked: Asked, run: _Run, engine: Engine, questions: Sequence[Question]) -> None:
    chat = has_template(engine) if asked.chat is None else asked.chat
    ready, prompts, params = [], [], []
    for question in questions:
        prompt = engine_prompt(question.given, chat=chat, system=asked.system)
        try:
            wanted = _params(engine, asked, question)
            # The engine starts all or nothing, so each question is tried alone first.
            engine.stream(prompt, wanted).close()
        except (ValueError, TypeError) as error:
            run.fail(question.line, question.id, str(error))
            continue
        ready.append(question)
        prompts.append(prompt)
        params.append(wanted)
    for index, result in engine.as_completed(prompts, params):
        run.finish(ready[index], result)


def _params(engine: Engine, asked: Asked, question: Question) -> SamplingParams:
    seed = line_seed(asked.sampling.get("seed") or 0, question.line.number)
    own = sampling_values(question.params) if question.params else {}
    return replace(engine.get_default_sampling_params(), **{**asked.sampling, "seed": seed, **own})


def has_template(engine: Engine) -> bool:
    """Whether the tokenizer of draft and target can make a chat prompt."""
    return bool(getattr(engine.get_tokenizer(), "chat_template", None))


def _say_stopped(done: int, total: int, output: Path | None) -> None:
    if output is None:
        say(f"stopped after {done} of {total} lines; with --output a run can go on")
    else:
        say(f"{output} has {done} of {total} results; the same command again goes on from there")


def _say_done(run: _Run, before: int, total: int) -> int:
    run.progress.summary(run.metrics)
    if run.failed:
        say(f"{run.failed} of {total} lines failed; {before + run.answered} have results")
    return FAILED if run.failed else 0
