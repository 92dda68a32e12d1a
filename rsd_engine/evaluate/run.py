"""Asks an engine all questions with one method after the other, and judges the answers.

Questions are asked in batches that always hold the same ones, each on an empty prefix cache. So a
batch that is asked again, after a run was killed, takes the same passes and gives the same rewards
to the last bit, and the same counts.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product

from rsd_engine import CompletionOutput, Engine, Metrics, RequestOutput
from rsd_engine.engine.chat.questions import ChatSettings, question_seed
from rsd_engine.evaluate.answers import Answers, answers_of
from rsd_engine.evaluate.choosing import Given, solution_reward
from rsd_engine.evaluate.methods import Trial
from rsd_engine.evaluate.record import (
    Counts,
    Question,
    Record,
    RoleSeconds,
    Sample,
    lasting,
    step_records,
)

BATCH = 64  # questions that are asked at once, and asked again if the run is killed meanwhile
_WARM_UP_TOKENS = 16
_EASY = "1 + 1 = ?"  # fits into any context


@dataclass(frozen=True)
class Item:
    """A question to be answered by one method with one seed.

    Attributes:
        number: its place among all of the run, from 1.
    """

    number: int
    trial: Trial
    seed: int
    question: Question

    @property
    def digest(self) -> str:
        """Differs for anything else that is asked."""
        trial = self.trial
        asked = [trial.method, dict(trial.settings), self.seed, asdict(self.question)]
        text = json.dumps(asked, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


Batch = tuple[Item, ...]
"""Items of one method and seed that are asked at once."""
Notice = Callable[[Record, Metrics | None], None]
"""Told of each answer as it comes, with what it cost; its seconds are not known yet."""


def make_items(
    trial: Trial, seed: int, questions: Sequence[Question], first: int = 1
) -> list[Item]:
    """All questions for one method and seed, numbered from `first`."""
    return [Item(number, trial, seed, one) for number, one in enumerate(questions, first)]


def in_batches(items: Sequence[Item]) -> list[Batch]:
    """Items of one method and seed, in their order."""
    return [tuple(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]


def make_batches(
    trials: Sequence[Trial], seeds: Sequence[int], questions: Sequence[Question]
) -> list[Batch]:
    """All that is to be asked: by method, then seed, then in the order of the questions."""
    found: list[Batch] = []
    for number, (trial, seed) in enumerate(product(trials, seeds)):
        found += in_batches(make_items(trial, seed, questions, 1 + number * len(questions)))
    return found


class Examiner:
    """Asks an engine questions and judges its answers.

    Args:
        engine: with all models that the methods need.
        chat: how questions become prompts.
        questions: all that it will be asked.

    Raises:
        ImportError: a package is missing that compares answers of their kind.
    """

    def __init__(self, engine: Engine, chat: ChatSettings, questions: Iterable[Question]) -> None:
        self._engine = engine
        self._chat = chat.of(engine.get_tokenizer())
        self._answers = {kind: answers_of(kind) for kind in {one.kind for one in questions}}

    def check(self, trials: Iterable[Trial]) -> None:
        """Raises ValueError if the engine cannot do what a method asks; see `Engine`'s errors."""
        for trial in trials:
            if error := self._refusal(trial, _EASY):
                raise ValueError(f"method {trial.method!r}: {error}")

    def warm_up(self, batch: Batch) -> None:
        """Asks a batch and discards the answers: what is done once is not to count as time."""
        for _ in self._ask([_shortened(item) for item in batch]):
            pass

    def answer(self, batch: Batch, notice: Notice) -> list[Record]:
        """The records of a batch, in its order. A question that cannot be asked gets an error."""
        self._engine.reset_prefix_cache()
        found: dict[int, Record] = {}
        started = time.perf_counter()
        for item, result in self._ask(batch):
            if isinstance(result, str):
                record, metrics = _failed(item, result), None
            else:
                record, metrics = self._judge(item, result), result.metrics
            found[item.number] = record
            notice(record, metrics)
        seconds = (time.perf_counter() - started) / len(batch)
        return [replace(found[item.number], seconds=round(seconds, 6)) for item in batch]

    def _ask(self, batch: Sequence[Item]) -> Iterator[tuple[Item, RequestOutput | str]]:
        """Each item with its result, as it comes, or with what keeps it from being asked."""
        ready, refused = list(batch), []
        try:
            results = self._results(ready)
        except ValueError:  # one of them, and then none is started
            refused = [
                (item, error)
                for item in batch
                if (error := self._refusal(item.trial, item.question.text))
            ]
            bad = {item.number for item, _ in refused}
            ready = [item for item in batch if item.number not in bad]
            self._engine.reset_prefix_cache()
            results = self._results(ready)
        yield from refused
        for index, result in results:
            yield ready[index], result

    def _results(self, items: Sequence[Item]) -> Iterator[tuple[int, RequestOutput]]:
        return self._engine.as_completed(
            [self._prompt(one.question.text) for one in items],
            [replace(one.trial.params, seed=_seed(one)) for one in items],
        )

    def _refusal(self, trial: Trial, text: str) -> str | None:
        """What keeps a question from being asked, in one line."""
        try:
            self._engine.stream(self._prompt(text), trial.params).close()
        except ValueError as error:
            return " ".join(str(error).split())
        return None

    def _prompt(self, text: str) -> dict[str, object]:
        return self._chat.engine_prompt({"question": text})

    def _judge(self, item: Item, result: RequestOutput) -> Record:
        answers, trial = self._answers[item.question.kind], item.trial
        given = [Given(answers.find(one.text), _rewards(one)) for one in result.outputs]
        chosen = 0 if trial.choose is None else trial.choose(given, answers.same)
        output, found = result.outputs[chosen], given[chosen].found
        errors = [one.error for one in result.outputs if one.error]
        return Record(
            question=item.question,
            method=trial.method,
            settings=trial.settings,
            seed=item.seed,
            text=output.text,
            found=found,
            correct=_is_right(answers, found, item.question),
            finish_reason=output.finish_reason,
            counts=Counts.of(result.metrics),
            seconds=0.0,
            role_seconds=RoleSeconds.of(result.metrics),
            steps=step_records(output),
            samples=_samples(item, answers, result.outputs, given) if trial.choose else (),
            error=errors[0] if errors else None,
        )


def by_method(batches: Iterable[Batch]) -> Iterator[tuple[Trial, int, list[Batch]]]:
    """Batches that follow each other, by what they have in common: method and seed."""
    for _, same in groupby(batches, key=lambda batch: (id(batch[0].trial), batch[0].seed)):
        group = list(same)
        yield group[0][0].trial, group[0][0].seed, group


def _shortened(item: Item) -> Item:
    params = replace(item.trial.params, max_tokens=_WARM_UP_TOKENS)
    return replace(item, trial=replace(item.trial, params=params))


def _seed(item: Item) -> int:
    return question_seed(item.seed, item.question.id)


def _rewards(output: CompletionOutput) -> tuple[float, ...]:
    rewards = (step.reward for step in output.steps)
    return tuple(r for r in rewards if r is not None and not math.isnan(r))


def _is_right(answers: Answers, found: str | None, question: Question) -> bool:
    return found is not None and answers.same(found, question.answer)


def _samples(
    item: Item, answers: Answers, outputs: Sequence[CompletionOutput], given: Sequence[Given]
) -> tuple[Sample, ...]:
    aggregate = item.trial.aggregate
    return tuple(
        Sample(
            text=output.text,
            found=one.found,
            correct=_is_right(answers, one.found, item.question),
            reward=None if aggregate is None else lasting(solution_reward(aggregate, one.rewards)),
        )
        for output, one in zip(outputs, given, strict=True)
    )


def _failed(item: Item, error: str) -> Record:
    return Record(
        question=item.question,
        method=item.trial.method,
        settings=item.trial.settings,
        seed=item.seed,
        text="",
        found=None,
        correct=False,
        finish_reason="error",
        counts=Counts(),
        seconds=0.0,
        role_seconds=RoleSeconds(),
        error=error,
    )
