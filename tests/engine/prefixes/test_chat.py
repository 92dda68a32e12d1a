"""A chat reads every token once for each role: its turns go on where the last one has ended."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from rsd_engine import Constant, Engine, RequestOutput, SamplingParams
from tests.engine.harness.runs import prm_rows
from tests.tiny_models import TinyModels

TURNS, QUESTION = 10, "What is it all about?"


@pytest.fixture(scope="module")
def written(tiny: TinyModels) -> Iterator[Engine]:
    """The contexts have the tokens that were written, so that a test can tell what was read."""
    with Engine(**tiny.sources(), device="cpu", max_num_seqs=3, step_ends="tokens") as engine:
        yield engine


def talk(engine: Engine, params: SamplingParams, chats: int = 1) -> list[list[RequestOutput]]:
    """Chats side by side: the results of every turn of each.

    They have the first 40 tokens in common.
    """
    encode = engine.get_tokenizer().encode
    engine.reset_prefix_cache()
    contexts = [encode("Two apples and " * 3)[:40] + encode(f"chat {i}.") for i in range(chats)]
    turns: list[list[RequestOutput]] = [[] for _ in contexts]
    for turn in range(TURNS):
        prompts = [{"prompt_token_ids": ids, "question": QUESTION} for ids in contexts]
        for i, result in enumerate(engine.generate(prompts, params, use_tqdm=False)):
            turns[i].append(result)
            contexts[i] = [
                *contexts[i], *result.outputs[0].token_ids, *encode(f"And {turn}?")
            ]  # fmt: skip
    return turns


def sampled(params: SamplingParams, temperature: float) -> SamplingParams:
    return replace(params, temperature=temperature, seed=7, max_tokens=20, ignore_eos=True)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the beginning of both."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return [*same, False].index(False)


def prm_row(engine: Engine, result: RequestOutput) -> list[int]:
    """The PRM's context when the last step is scored."""
    return prm_rows(engine, replace(result, prompt=QUESTION))[-1]


def written_context(result: RequestOutput) -> tuple[int, ...]:
    return (*result.prompt_token_ids, *result.outputs[0].token_ids)


def role_sums(turns: Sequence[RequestOutput], role: str) -> tuple[int, int]:
    metrics = [getattr(result.metrics, role) for result in turns]
    return sum(m.tokens_read for m in metrics), sum(m.cached_tokens for m in metrics)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("writer", ["draft", "target", "accepted draft", "rewriting target"])
def test_a_writer_reads_each_token_of_a_chat_once(
    written: Engine, writer: str, temperature: float
) -> None:
    """All but the last one, from which nothing was written.

    No token is read twice, not even the last one of an output: nothing was written after it.
    """
    params = {
        "draft": SamplingParams(mode="draft"),
        "target": SamplingParams(mode="target"),
        "accepted draft": SamplingParams(policy=Constant(1.0)),
        "rewriting target": SamplingParams(policy=Constant(0.0)),
    }[writer]
    [turns] = talk(written, sampled(params, temperature))
    read, cached = role_sums(turns, writer.split()[-1])
    contexts = [written_context(result) for result in turns]
    assert all(b[: len(a)] == a for a, b in itertools.pairwise(contexts))
    assert read == len(contexts[-1]) - 1
    assert cached == sum(len(context) - 1 for context in contexts[:-1])


def test_the_prm_reads_what_it_has_in_common_once(written: Engine) -> None:
    """Its contexts begin with the same question; all else is new, unless it comes again."""
    [turns] = talk(written, sampled(SamplingParams(policy=Constant(1.0)), 0.8))
    rows = [prm_row(written, result) for result in turns]
    prm = written.parts.models.prm
    assert prm is not None
    prompt = len(prm.format.prompt_ids(QUESTION))
    for before, (row, result) in enumerate(zip(rows, turns, strict=True)):
        known = [common(row[:prompt], other) for other in rows[:before]]
        assert result.metrics.prm.cached_tokens == min(max(known, default=0), prompt - 1)
        assert result.metrics.prm.tokens_read == len(row) - result.metrics.prm.cached_tokens


def test_chats_side_by_side_share_their_beginning(written: Engine) -> None:
    params = sampled(SamplingParams(mode="target"), 0.8)
    alone, *others = talk(written, params, chats=3)
    for turns in (alone, *others):
        for last, result in itertools.pairwise(turns):
            assert result.num_cached_tokens == len(written_context(last)) - 1
    [again] = talk(written, params)
    assert [r.outputs[0].token_ids for r in again] == [r.outputs[0].token_ids for r in alone]
