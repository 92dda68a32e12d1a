"""Guesses change how fast a result comes and nothing in it: the demo family, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from rsd_engine import Engine, FinishedEvent, SamplingParams, StepEvent, Threshold
from rsd_engine.demo.problems import generate as make_problems
from rsd_engine.engine.stream import Stream
from rsd_engine.sampling_params import ModeName
from rsd_kernels.state.enums import Phase
from tests.engine.guesses.runs import (
    SOURCES,
    WAYS,
    ask,
    assert_same,
    demo_engine,
    guessing,
    plain_params,
    summed,
    told,
    with_guesses,
)
from tests.engine.harness.runs import (
    all_pages_free,
    harsh,
    poison_free,
    run_until,
    short_launches,
)
from tests.page_checks import check_integrity

MODES = tuple(SOURCES)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with demo_engine(max_num_seqs=8) as built:
        yield built


@pytest.mark.parametrize("mode", MODES)
def test_every_source_beside_the_others(engine: Engine, mode: ModeName) -> None:
    plain = plain_params(20, mode=mode, max_tokens=40)
    found = ask(engine, guessing(plain, mode))
    assert_same(found, ask(engine, plain))
    guesses = summed(found).guesses
    assert all(getattr(guesses, source).made for source in ("draft", "ngram"))
    assert (guesses.rejected.made > 0) == (mode == "rsd")
    assert all(r.metrics.guesses.made == 0 for r in found[6::7])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", MODES)
def test_every_source_on_200_problems(mode: ModeName) -> None:
    plain = plain_params(200, mode=mode, max_tokens=200)
    with demo_engine(max_num_seqs=64, max_guesses=128) as engine:
        wanted = ask(engine, plain)
        for way in WAYS[mode]:
            assert_same(ask(engine, [with_guesses(p, *way) for p in plain]), wanted)


@pytest.mark.parametrize(
    ("slots", "count", "every"),
    [(4, 7, 7), pytest.param(64, 64, 2, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_alone_and_together_while_pages_are_taken_away(slots: int, count: int, every: int) -> None:
    mixed = {mode: plain_params(count, mode=mode, max_tokens=30) for mode in MODES}
    plain = [mixed[MODES[i % 2]][i] for i in range(count)]
    asked = [guessing(mixed[MODES[i % 2]], MODES[i % 2])[i] for i in range(count)]
    with demo_engine(max_num_seqs=1, max_guesses=0) as alone:
        wanted = ask(alone, plain)
    with demo_engine(max_num_seqs=slots, max_guesses=slots) as engine:
        with harsh(engine, ticks=3, preempt_every=every):
            assert_same(ask(engine, asked), wanted)
        assert engine.num_preemptions > 3
        assert all_pages_free(engine)


@pytest.mark.parametrize("mode", MODES)
def test_an_abort_while_the_draft_guesses(engine: Engine, mode: ModeName) -> None:
    plain = plain_params(3, mode=mode, policy=Threshold(1.1), max_tokens=30)
    wanted = ask(engine, plain)
    asked = [with_guesses(params, "draft", 3) for params in plain]
    core = engine.parts.core
    with short_launches(engine, 1):
        chats = [[{"role": "user", "content": p.question}] for p in make_problems(0, "test", 3)]
        others = engine.streams(chats, asked)
        victim = engine.stream("a", replace(asked[0], max_tokens=200, seed=7))
        run_until(engine, lambda: int(core.state.phase[3]) == Phase.GUESS)
        before, held = int(core.state.num_free), int(core.state.num_pages[:, 3].sum())
        engine.abort(victim.request_id)
        assert int(core.state.num_free) == before + held > before
        check_integrity(core.state, core.loop.tokens_per_page)
        poison_free(engine)
        assert last(victim).output.outputs[0].finish_reason == "abort"
        assert_same([last(stream).output for stream in others], wanted)
    assert all_pages_free(engine)


def last(stream: Stream) -> FinishedEvent:
    *_, end = stream
    assert isinstance(end, FinishedEvent)
    return end


def test_a_stream_has_the_tokens_one_by_one_or_several(engine: Engine) -> None:
    params = SamplingParams(mode="target", temperature=0.7, seed=1, max_tokens=50, logprobs=1)
    question = make_problems(0, "test", 1)[0].question

    def events(asked: SamplingParams) -> list[StepEvent | FinishedEvent]:
        return list(engine.stream([{"role": "user", "content": question}], asked))

    wanted, found = events(params), events(with_guesses(params, "draft", 4))
    end = found[-1]
    assert isinstance(end, FinishedEvent)
    assert isinstance(wanted[-1], FinishedEvent)
    assert_same([end.output], [wanted[-1].output])
    parts = [event for event in found if isinstance(event, StepEvent)]
    [output] = end.output.outputs
    assert "".join(event.text for event in parts) == output.text
    assert tuple(i for event in parts for i in event.token_ids) == output.token_ids
    assert tuple(p for event in parts for p in event.logprobs or ()) == output.logprobs


@pytest.mark.parametrize("mode", MODES)
def test_samples_and_logprobs_of_the_prompt(engine: Engine, mode: ModeName) -> None:
    plain = plain_params(4, mode=mode, n=3, prompt_logprobs=1, max_tokens=25)
    assert_same(ask(engine, guessing(plain, mode)), ask(engine, plain))


def test_draft_and_target_without_a_prm(engine: Engine) -> None:
    """Plain token-level speculation: the target is what writes."""
    plain = plain_params(5, max_tokens=25)
    with demo_engine(prm=None, step_delimiters="\n\n", max_num_seqs=5) as alone:
        assert alone.parts.rules.modes == ("target", "draft")
        found = ask(alone, guessing(plain, "target"))
        wanted = ask(engine, [replace(params, mode="target") for params in plain])
        assert_same(found, wanted)
        assert all(step.source == "target" for r in found for step in r.outputs[0].steps)


@pytest.mark.parametrize("mode", MODES)
def test_few_places_for_many(mode: ModeName) -> None:
    """One guess a pass for all: who gets it changes nothing."""
    plain = plain_params(5, mode=mode, max_tokens=25)
    with demo_engine(max_num_seqs=4, max_guesses=1) as engine:
        wanted = ask(engine, plain)
        found = ask(engine, guessing(plain, mode))
        assert [told(r) for r in found] == [told(r) for r in wanted]
        assert summed(found).guesses.kept > 0
