"""What the tests of guesses share: requests of all kinds, and what must not depend on guesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from rsd_engine import Engine, Metrics, RequestOutput, SamplingParams
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate as make_problems
from rsd_engine.sampling_params import ModeName, SpeculateName

VARIANTS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 0.7, "top_p": 0.9, "logprobs": 0},
    {"temperature": 0.7, "top_k": 20, "stop": ["= 1", "\n\nS"]},
    {"temperature": 0.7, "min_p": 0.05, "repetition_penalty": 1.2, "logprobs": 1},
    {"temperature": 0.7, "frequency_penalty": 0.4, "max_step_tokens": 7, "min_tokens": 20},
)
COUNTS = (None, 1, 2, 4, 8)  # guesses at a time; None: adaptive
SOURCES: dict[ModeName, tuple[SpeculateName, ...]] = {
    "target": ("draft", "ngram"),
    "rsd": ("draft", "ngram", "rejected", "rejected+draft"),
}
WAYS: dict[ModeName, list[tuple[SpeculateName, int | None]]] = {
    mode: [(s, k) for s, k in product(sources, COUNTS) if s != "rejected" or k is None]
    for mode, sources in SOURCES.items()
}


def demo_engine(**options: Any) -> Engine:
    """The demo family, with room for guesses."""
    models = {role: checkpoint_dir(role) for role in ("draft", "target", "prm")}
    return Engine(**{**models, "device": "cpu", "max_model_len": 400, "max_guesses": 32, **options})


def plain_params(count: int, **common: Any) -> list[SamplingParams]:
    """One variant after another, each with a seed of its own."""
    return [
        SamplingParams(**{"max_tokens": 60, **VARIANTS[i % len(VARIANTS)], "seed": i, **common})
        for i in range(count)
    ]


def guessing(params: Sequence[SamplingParams], mode: ModeName) -> list[SamplingParams]:
    """The same with guesses from every source in turns; every seventh stays without."""
    ways = WAYS[mode]
    return [
        p if i % 7 == 6 else with_guesses(p, *ways[7 * i % len(ways)]) for i, p in enumerate(params)
    ]


def with_guesses(
    params: SamplingParams, speculate: SpeculateName, num_guesses: int | None = None
) -> SamplingParams:
    return replace(params, speculate=speculate, num_guesses=num_guesses)


def ask(engine: Engine, params: Sequence[SamplingParams]) -> list[RequestOutput]:
    """Another problem of the demo for each."""
    problems = make_problems(0, "test", len(params))
    chats = [[{"role": "user", "content": problem.question}] for problem in problems]
    return engine.chat(chats, params, use_tqdm=False)


def told(result: RequestOutput) -> str:
    """All of a result but what it cost: texts, tokens, rewards, log-probabilities to the bit.

    As text, in which NaN equals NaN.
    """
    outputs = [
        replace(output, steps=tuple(replace(step, guessed=0) for step in output.steps))
        for output in result.outputs
    ]
    return repr((result.prompt_token_ids, result.prompt_logprobs, result.seed, outputs))


def assert_same(found: Sequence[RequestOutput], wanted: Sequence[RequestOutput]) -> None:
    """The same results, and guesses that were right and wrong on the way."""
    for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert told(one) == told(other), f"request {i}"
    guesses = summed(found).guesses
    assert 0 < guesses.kept < guesses.made
    assert guesses.kept == sum(s.guessed for r in found for o in r.outputs for s in o.steps)


def summed(results: Sequence[RequestOutput]) -> Metrics:
    return sum((result.metrics for result in results), start=Metrics())
