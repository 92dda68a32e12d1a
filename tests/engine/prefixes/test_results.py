"""Whatever is found in the prefix cache, results are those without it, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from rsd_engine import Clip, Engine, RequestOutput, SamplingParams, TargetJudge, Threshold
from rsd_engine.demo import checkpoint_dir, problems
from rsd_engine.sampling_params import ModeName
from rsd_kernels.cpu.library import load
from tests.engine.harness.runs import all_pages_free, decisions, generate, harsh, scores
from tests.tiny_models import TinyModels

STEM = "Tom has 3 apples and (2) pears.\n\nHe eats one of them, and 12 + 30 more. "
PROMPTS = [STEM * i + tail for i in (0, 1, 2) for tail in ("What is 7?", "x = 2\n\nb")]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True),
    SamplingParams(temperature=0.9, top_p=0.9, seed=3, max_tokens=24, policy=Clip(), n=2),
    SamplingParams(temperature=0.8, seed=4, max_tokens=24, mode="draft"),
    SamplingParams(temperature=0.8, seed=5, max_tokens=24, mode="target", repetition_penalty=1.2),
    SamplingParams(temperature=0.0, max_tokens=24, mode="target", logprobs=2),
]


@contextmanager
def both(**arguments: Any) -> Iterator[tuple[Engine, Engine]]:
    """Engines without and with a cache."""
    with (
        Engine(device="cpu", **arguments, enable_prefix_caching=False) as plain,
        Engine(device="cpu", **arguments) as cached,
    ):
        yield plain, cached


def facts(result: RequestOutput) -> list[object]:
    """All that a result says of what was written; rewards too, where a row's bits never depend on
    the rows beside it.
    """
    samples = range(len(result.outputs))
    found: list[object] = [o.text for o in result.outputs]
    found += [decisions(result, i) for i in samples]
    found += [o.logprobs and [list(top) for top in o.logprobs] for o in result.outputs]
    return [*found, *(scores(result, i) for i in samples)] if load() else found


def requests() -> tuple[list[str], list[SamplingParams]]:
    pairs = [(prompt, params) for params in PARAMS for prompt in PROMPTS]
    return [prompt for prompt, _ in pairs], [params for _, params in pairs]


def same(plain: Sequence[RequestOutput], cached: Sequence[RequestOutput]) -> None:
    for i, (one, other) in enumerate(zip(plain, cached, strict=True)):
        assert facts(one) == facts(other), f"request {i}"


def found(results: Sequence[RequestOutput]) -> tuple[int, ...]:
    metrics = [result.metrics for result in results]
    return tuple(
        sum(getattr(m, role).cached_tokens for m in metrics) for role in ("draft", "target", "prm")
    )


def test_hits_change_nothing(tiny: TinyModels) -> None:
    prompts, params = requests()
    with both(**tiny.sources(), policy=Threshold(0.5), max_num_seqs=4) as (plain, cached):
        wanted = generate(plain, prompts, params)
        first = generate(cached, prompts, params)
        with harsh(cached, preempt_every=9):
            second = generate(cached, prompts, params)
        same(wanted, first)
        same(wanted, second)
        assert all(n > 0 for n in found(first)) and found(wanted) == (0, 0, 0)
        assert all(a < b for a, b in zip(found(first), found(second), strict=True))
        assert all_pages_free(cached) and not cached.check_integrity()


def test_what_is_found_is_not_read(tiny: TinyModels) -> None:
    """One at a time, nobody is preempted: a token is read or found."""
    params = [replace(p, n=1) for p in PARAMS]
    with both(**tiny.sources(), policy=Threshold(0.5), max_num_seqs=1) as (plain, cached):
        for params_of_all in params:
            wanted, hits = (generate(e, PROMPTS, params_of_all) for e in (plain, cached))
            same(wanted, hits)
            for one, other in zip(wanted, hits, strict=True):
                for role in ("draft", "target", "prm"):
                    alone, shared = (getattr(r.metrics, role) for r in (one, other))
                    if alone.passes:
                        assert shared.tokens_read + shared.cached_tokens == alone.tokens_read
                    assert shared.tokens_generated == alone.tokens_generated


def test_where_pages_are_short(tiny: TinyModels) -> None:
    """Pages of ended requests are taken while others look for them; nothing fails for it."""
    prompts, params = requests()
    sources: dict[str, Any] = {**tiny.sources(), "policy": Threshold(0.5), "max_num_seqs": 4}
    num_bytes = 56 * 6144  # some pages more than one request of full length may need
    with both(**sources, max_model_len=256, kv_cache_memory_bytes=num_bytes) as (plain, cached):
        wanted = generate(plain, prompts, params)
        with harsh(cached, ticks=3, preempt_every=0):
            hits = generate(cached, prompts, params)
        same(wanted, hits)
        assert all(n > 0 for n in found(hits))
        assert int(cached.parts.core.state.page_stamp.max()) > 3  # pages were taken again


@pytest.mark.parametrize("mode", ["rsd", "target"])
def test_a_judge_finds_what_the_target_has_read(mode: ModeName) -> None:
    judge = TargetJudge(question="Is it right? From 0 to 9.", answer="It is ")
    sources = {"draft": checkpoint_dir("draft"), "target": checkpoint_dir("target")}
    prompts = [f"{STEM}{i} + {i}" for i in range(4)]
    params = SamplingParams(temperature=0.0, max_tokens=40, mode=mode)
    with both(**sources, scorer=judge, max_num_seqs=2) as (plain, cached):
        generate(cached, prompts, replace(params, mode="target"))
        hits = generate(cached, prompts, params)
        same(generate(plain, prompts, params), hits)
        tokens = [len(result.prompt_token_ids) for result in hits]
        assert [result.num_cached_tokens for result in hits] == [n - 1 for n in tokens]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("mode", ["rsd", "draft", "target"])
def test_the_demo_family(mode: ModeName, temperature: float) -> None:
    check_demo(mode, temperature, 40)


def test_some_problems_of_the_demo_family() -> None:
    check_demo("rsd", 0.7, 6)


def check_demo(mode: ModeName, temperature: float, count: int) -> None:
    draft, target, prm = (checkpoint_dir(role) for role in ("draft", "target", "prm"))
    params = SamplingParams(temperature=temperature, seed=11, max_tokens=160, mode=mode)
    chats = [[{"role": "user", "content": p.question}] for p in problems.generate(5, "test", count)]
    with both(draft=draft, target=target, prm=prm, max_num_seqs=8) as (plain, cached):
        wanted = plain.chat(chats, params, use_tqdm=False)
        for _ in range(2):
            hits = cached.chat(chats, params, use_tqdm=False)
            same(wanted, hits)
        first = "target" if mode == "target" else "draft"  # it has read the prompt, whatever came
        for result in hits:
            tokens = getattr(result.metrics, first).cached_tokens
            assert tokens == len(result.prompt_token_ids) - 1
            assert mode == "rsd" or result.num_cached_tokens == tokens
