"""The gate, then all contenders of one batch size in alternation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from bench.compare.effect import Models
from bench.compare.rsd_part import Metered
from bench.lib.timing import Timing, alternate, require_same_tokens
from bench.speculate.contenders import NONE, WAYS, Ours, Transformers
from rsd_engine import Metrics, RequestOutput


@dataclass(frozen=True)
class Found:
    """One contender.

    Attributes:
        mode: "target", "rsd" or "transformers".
        guesses: whence they come.
        cpu_seconds: processor time of a run, the median; a busy machine changes it little.
        ratio: speed against the same mode without guesses.
        tokens_a_pass: that the target wrote, by its passes; None for transformers.
        acceptance: share of the guesses that were right; None without guesses.
    """

    mode: str
    guesses: str
    timing: Timing
    cpu_seconds: float
    ratio: float
    tokens_a_pass: float | None = None
    acceptance: float | None = None

    def times_as_fast_as(self, other: Found) -> float:
        return other.timing.median / self.timing.median

    def figures(self) -> dict[str, Any]:
        """For the line of JSON."""
        return {
            "ratio": self.ratio,
            "tokens_a_pass": self.tokens_a_pass,
            "acceptance": self.acceptance,
            "seconds": list(self.timing.seconds),
            "cpu_seconds": self.cpu_seconds,
        }


def measure(
    models: Models, questions: Sequence[str], batch: int, tokens: int, runs: int
) -> list[Found]:
    """All contenders, on the same questions.

    Args:
        batch: questions answered at once.
        tokens: most of an answer.
        runs: timed runs of each contender.

    Raises:
        timing.Mismatch: a contender writes other tokens than it should.
    """
    ours = Ours.load(models, batch, tokens)
    answers: dict[tuple[str, str], list[RequestOutput]] = {}
    contenders: dict[tuple[str, str], Callable[[], object]] = {}
    for kind, ways in WAYS.items():
        for name, way in ways.items():
            contenders[kind, name] = partial(ours.answer, questions, kind, way)
            answers[kind, name] = ours.answer(questions, kind, way)
            what = f"batch {batch}, mode {kind}, guesses: {name}"
            _require_same(answers[kind, name], answers[kind, NONE], what)
    if batch == 1:
        plain = answers["target", NONE]
        others = Transformers.load(models, tokens)
        prompts = [result.prompt_token_ids for result in plain]
        for name, answer in others.contenders(prompts).items():
            contenders["transformers", name] = answer
            wanted = [result.outputs[0].token_ids for result in plain]
            require_same_tokens(wanted, answer(), f"transformers, guesses: {name}")
    # What ran for the gate was the warm-up.
    metered = {"/".join(key): Metered(fn) for key, fn in contenders.items()}
    timings = alternate(metered, runs, warmup=0)
    ours.engine.close()
    found = []
    for mode, name in contenders:
        timing, base = timings[f"{mode}/{name}"], timings[f"{mode}/{NONE}"]
        metrics = _metrics(answers.get((mode, name), ()))
        found.append(
            Found(
                mode, name, timing, median(metered[f"{mode}/{name}"].cpu_seconds),
                base.median / timing.median,
                None if metrics is None else _tokens_a_pass(metrics),
                None if metrics is None else _acceptance(metrics),
            )
        )  # fmt: skip
    return found


def _require_same(
    found: Sequence[RequestOutput], wanted: Sequence[RequestOutput], what: str
) -> None:
    """The gate: the same tokens, and the same of them from the draft."""
    for one, other in zip(found, wanted, strict=True):
        mine, theirs = (
            [(*step.token_ids, len(step.source)) for step in result.outputs[0].steps]
            for result in (one, other)
        )
        require_same_tokens(mine, theirs, what)


def _metrics(results: Sequence[RequestOutput]) -> Metrics | None:
    return sum((r.metrics for r in results), start=Metrics()) if results else None


def _tokens_a_pass(metrics: Metrics) -> float:
    return metrics.target.tokens_generated / max(1, metrics.target.passes)


def _acceptance(metrics: Metrics) -> float | None:
    guesses = metrics.guesses
    return guesses.kept / guesses.made if guesses.made else None
