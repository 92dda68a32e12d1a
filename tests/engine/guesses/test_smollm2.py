"""Guesses with a real model, SmolLM2-135M-Instruct, that guesses for itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count as count_from
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from rsd_engine import Engine, RequestOutput, SamplingParams
from tests.engine.guesses.runs import WAYS, assert_same, plain_params, told, with_guesses
from tests.engine.harness.runs import short_launches
from tests.loop.executors.around import around_launches
from tests.models.gguf_files import find_smollm2

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SUBJECTS = ("rain", "bread", "the sea", "trains", "a cat", "music", "snow", "tea", "maps", "glass")
QUESTIONS = [f"{ask} {subject}." for ask in ("Explain", "Tell a story of") for subject in SUBJECTS]
REPETITIVE = [
    "The quick brown fox jumps over the lazy dog.\n" * 5,
    "red, green, blue, yellow, " * 8,
    "I will not run in the hall today. " * 6,
]


@pytest.fixture(scope="module")
def path() -> Path:
    return find_smollm2()


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    with Engine(
        path, path, device="cpu", dtype="float32", max_model_len=256, max_num_seqs=20,
        max_guesses=160,
    ) as built:  # fmt: skip
        yield built


def chat(
    engine: Engine, questions: Sequence[str], params: Sequence[SamplingParams]
) -> list[RequestOutput]:
    chats = [[{"role": "user", "content": question}] for question in questions]
    return engine.chat(chats, params, use_tqdm=False)


def test_the_same_tokens_from_every_source(engine: Engine, path: Path) -> None:
    """The expected ones by an engine without room for guesses, one after another.

    At last with all sources beside each other, while pages are taken away.
    """
    plain = plain_params(len(QUESTIONS), mode="target", max_tokens=24)
    with Engine(
        target=path, device="cpu", dtype="float32", max_model_len=256, max_num_seqs=1
    ) as alone:
        wanted = chat(alone, QUESTIONS, plain)
    for speculate, count in WAYS["target"]:
        asked = [with_guesses(params, speculate, count) for params in plain]
        found = chat(engine, QUESTIONS, asked)
        assert [told(r) for r in found] == [told(r) for r in wanted], (speculate, count)
    mixed = [with_guesses(p, *WAYS["target"][i % 10]) for i, p in enumerate(plain)]
    core, launches = engine.parts.core, count_from(1)

    def preempt() -> None:
        if next(launches) % 5 == 0:
            core.preempt_youngest()

    with short_launches(engine, 2), around_launches(core, before=preempt):
        assert_same(chat(engine, QUESTIONS, mixed), wanted)
    assert engine.num_preemptions > 3


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_k_and_one_tokens_a_pass(engine: Engine, k: int, temperature: float) -> None:
    """Leviathan et al., 2023: every guess is right where draft and target are one model."""
    params = SamplingParams(
        mode="target", temperature=temperature, seed=0, max_tokens=45, ignore_eos=True,
        speculate="draft", num_guesses=k,
    )  # fmt: skip
    for result in chat(engine, QUESTIONS[:4], [replace(params, seed=i) for i in range(4)]):
        guesses = result.metrics.guesses.draft
        assert guesses.kept == guesses.made > 0
        assert result.metrics.target.passes == math.ceil(45 / (k + 1))


def test_ngrams_on_what_repeats(engine: Engine) -> None:
    params = SamplingParams(mode="target", temperature=0.0, max_tokens=80)
    wanted = engine.generate(REPETITIVE, params, use_tqdm=False)
    found = engine.generate(REPETITIVE, with_guesses(params, "ngram"), use_tqdm=False)
    assert [r.outputs[0].token_ids for r in found] == [r.outputs[0].token_ids for r in wanted]
    tokens = sum(r.metrics.target.tokens_generated for r in found)
    passes = sum(r.metrics.target.passes for r in found)
    print(f"n-grams: {tokens / passes:.2f} tokens a pass")
    assert tokens / passes > 1.5
