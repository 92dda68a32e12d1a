"""Many prompts with the same worked examples in front: what is read, and how long it takes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rsd_engine import Engine, RequestOutput, SamplingParams
from rsd_engine.demo import ROLES, checkpoint_dir, problems
from rsd_engine.engine.prompts import Prompt
from tests.engine.harness.runs import decisions

SLOTS = 8


def prompts(count: int, shots: int) -> tuple[list[Prompt], str]:
    """Solved problems in front of each question, for the PRM too; and the common beginning."""
    examples = problems.generate(1, "train", shots)
    stem = "".join(f"{p.question}\n\n{p.solution}\n\n" for p in examples)
    asked = [stem + p.question for p in problems.generate(2, "test", count)]
    return [{"prompt": text, "question": text} for text in asked], stem


def run(asked: list[Prompt], *, enable_prefix_caching: bool) -> tuple[list[RequestOutput], float]:
    models: dict[str, Any] = {role: checkpoint_dir(role) for role in ROLES}
    params = SamplingParams(temperature=0.0, max_tokens=40)
    with Engine(
        **models, device="cpu", max_num_seqs=SLOTS, enable_prefix_caching=enable_prefix_caching
    ) as engine:
        started = time.perf_counter()
        results = engine.generate(asked, params, use_tqdm=False)
        return results, time.perf_counter() - started


def reads(results: list[RequestOutput]) -> dict[str, int]:
    return {
        role: sum(getattr(result.metrics, role).tokens_read for result in results) for role in ROLES
    }


def check(count: int, shots: int) -> None:
    asked, stem = prompts(count, shots)
    plain, plain_seconds = run(asked, enable_prefix_caching=False)
    cached, cached_seconds = run(asked, enable_prefix_caching=True)
    assert [decisions(result) for result in plain] == [decisions(result) for result in cached]
    without, with_cache = reads(plain), reads(cached)
    print(f"\n{count} prompts: reads {without} in {plain_seconds:.2f} s without a cache, "
          f"{with_cache} in {cached_seconds:.2f} s with one")  # fmt: skip
    tokens = len(stem) // 6  # of the common beginning, at least
    for role in ROLES:
        active = sum(bool(getattr(result.metrics, role).passes) for result in plain)
        assert without[role] - with_cache[role] >= (active - SLOTS) * tokens, role


def test_a_dozen_prompts_read_their_beginning_once() -> None:
    check(14, 2)


@pytest.mark.slow
def test_two_hundred() -> None:
    check(200, 4)
