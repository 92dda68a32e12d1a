"""The questions that a benchmark asks."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.generate.questions import parse_question, read_lines


def questions(dataset: Path | None, count: int, seed: int) -> list[str]:
    """So many questions.

    Args:
        dataset: JSONL, repeated if it has fewer; None makes problems of the demo.
        count: of the questions.
        seed: of the demo's problems.

    Raises:
        UsageError: the file cannot be read, is empty, or a line has no text to ask.
    """
    if dataset is None:
        from rsd_engine.demo.problems import generate

        return [problem.question for problem in generate(seed, "test", count)]
    found = []
    for line in read_lines(dataset):
        try:
            given = parse_question(line).given
            found.append(given["prompt"] if "prompt" in given else given["question"])
        except KeyError:
            raise UsageError(
                f'{dataset}, line {line.number}: needs "question" or "prompt", has {list(given)}'
            ) from None
        except ValueError as error:
            raise UsageError(f"{dataset}, line {line.number}: {error}") from None
    if not found:
        raise UsageError(f"{dataset} has no questions")
    return list(islice(cycle(found), count))
