"""An abort returns every page at once and affects no other request, in any phase."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from rsd_engine import Engine, FinishedEvent, SamplingParams, Threshold
from rsd_engine.engine.stream import Stream
from rsd_kernels.state.enums import Phase, Role
from rsd_kernels.state.rows import RowBatch
from tests.engine.harness.runs import (
    PROMPTS,
    Reached,
    all_pages_free,
    decisions,
    generate,
    poison_free,
    run_until,
    short_launches,
)
from tests.engine.harness.scripted import replaced, scripted
from tests.loop.executors.around import around_launches
from tests.page_checks import check_integrity
from tests.tiny_models import TinyModels

LONG = SamplingParams(temperature=1.0, seed=3, max_tokens=120, ignore_eos=True,
                      policy=Threshold(1.1))  # fmt: skip
OTHERS = [SamplingParams(temperature=1.0, seed=s, max_tokens=30) for s in (5, 6)]


def launches(engine: Engine, count: int) -> None:
    """Runs `count` launches."""
    stats = engine.parts.core.stats
    last = stats.launches + count
    run_until(engine, lambda: stats.launches >= last)


def drain(stream: Stream) -> FinishedEvent:
    *_, last = stream
    assert isinstance(last, FinishedEvent)
    return last


@pytest.mark.parametrize("phase", [Phase.DRAFT, Phase.SCORE, Phase.TARGET])
def test_abort_in_each_phase(engine: Engine, phase: Phase) -> None:
    wanted = [generate(engine, [p], q)[0] for p, q in zip(PROMPTS[1:], OTHERS, strict=False)]
    core = engine.parts.core
    with short_launches(engine, 1):
        others = [engine.stream(p, q) for p, q in zip(PROMPTS[1:], OTHERS, strict=False)]
        victim = engine.stream(PROMPTS[0], LONG)
        launches(engine, 1)
        slot = len(others)
        assert int(core.state.prompt_length[slot]) == len(engine.get_tokenizer().encode(PROMPTS[0]))
        launches(engine, 30)
        run_until(engine, lambda: int(core.state.phase[slot]) == phase)
        assert int(core.state.phase[slot]) == phase
        held = int(core.state.num_pages[:, slot].sum())
        before = int(core.state.num_free)
        assert held > 0
        engine.abort(victim.request_id)
        assert int(core.state.num_free) == before + held
        check_integrity(core.state, core.loop.tokens_per_page)
        poison_free(engine)
        output = drain(victim).output
        assert output.outputs[0].finish_reason == "abort"
        assert "".join(step.text for step in output.outputs[0].steps) == output.outputs[0].text
        for stream, result in zip(others, wanted, strict=True):
            assert decisions(drain(stream).output) == decisions(result)
    assert all_pages_free(engine)


def test_abort_of_a_queued_request(engine: Engine) -> None:
    slots = engine.parts.core.state.num_slots
    streams = [engine.stream("a", OTHERS[0]) for _ in range(slots + 1)]
    engine.abort(streams[-1].request_id)
    output = drain(streams[-1]).output
    assert output.outputs[0].finish_reason == "abort" and output.outputs[0].steps == ()
    assert output.metrics.draft.tokens_read == 0
    results = [drain(stream).output for stream in streams[:-1]]
    assert len({tuple(map(str, decisions(r))) for r in results}) == 1


def test_abort_ends_all_samples(engine: Engine) -> None:
    """Some samples run, some are queued; one that has ended keeps its finish reason."""
    params = replace(LONG, n=6, seed=4, ignore_eos=False, max_tokens=25)
    stream = engine.stream(PROMPTS[0], params)
    with short_launches(engine, 1):
        launches(engine, 1)
        core = engine.parts.core
        first = core.slot_keys
        run_until(engine, lambda: core.slot_keys != first)
    engine.abort(stream.request_id)
    output = drain(stream).output
    reasons = [completion.finish_reason for completion in output.outputs]
    assert len(reasons) == 6 and reasons.count("abort") == 5, reasons
    [wanted] = generate(engine, [PROMPTS[0]], params)
    for index in range(6):
        found = decisions(output, index)
        assert found == decisions(wanted, index)[: len(found)]
    assert all_pages_free(engine)


def test_abort_of_a_preempted_request(engine: Engine) -> None:
    core = engine.parts.core
    with short_launches(engine, 3):
        other = engine.stream(PROMPTS[1], OTHERS[0])
        victim = engine.stream(PROMPTS[0], LONG)
        launches(engine, 10)
        assert core.preempt_youngest() == 1
        engine.abort(victim.request_id)
        assert drain(victim).output.outputs[0].finish_reason == "abort"
        [wanted] = generate(engine, [PROMPTS[1]], OTHERS[0])
        assert decisions(drain(other).output) == decisions(wanted)
    assert all_pages_free(engine)


def test_abort_while_a_step_waits_for_the_host(other_prm: TinyModels) -> None:
    with Engine(**other_prm.sources(), max_num_seqs=2, device="cpu") as engine:
        core = engine.parts.core
        victim = engine.stream(PROMPTS[0], LONG)

        def look() -> None:
            if int(core.state.phase[0]) == Phase.WAIT_HOST:
                raise Reached

        with around_launches(core, after=look), pytest.raises(Reached):
            list(engine.stream(PROMPTS[1], LONG))
        assert int(core.state.phase[0]) == Phase.WAIT_HOST
        engine.abort(victim.request_id)
        assert drain(victim).output.outputs[0].finish_reason == "abort"
        assert all_pages_free(engine)
        assert generate(engine, ["a"], OTHERS[0])[0].outputs[0].steps


def test_abort_of_nobody(engine: Engine) -> None:
    engine.abort("no such request")
    [result] = generate(engine, ["a"], OTHERS[0])
    engine.abort(result.request_id)


def test_a_slot_is_reused_after_an_abort(engine: Engine) -> None:
    """The slot's next request sees nothing of the aborted one."""
    [wanted] = generate(engine, [PROMPTS[2]], OTHERS[1])
    with short_launches(engine, 7):
        victim = engine.stream(PROMPTS[0], LONG)
        launches(engine, 1)
        engine.abort(victim.request_id)
        drain(victim)
        poison_free(engine)
        [again] = generate(engine, [PROMPTS[2]], OTHERS[1])
    assert decisions(again) == decisions(wanted)


@pytest.mark.parametrize("executor", ["eager", "profile"])
@pytest.mark.parametrize("what", ["own", "other", "add", "close"])
def test_nobody_waits_for_the_end_of_another_s_step(
    tiny: TinyModels, executor: str, what: str
) -> None:
    """A launch may last as long as a step; adding or aborting meanwhile does not wait for it."""
    tokens = SamplingParams(temperature=0.0, max_tokens=400, mode="draft")
    with (
        Engine(**tiny.sources(), max_num_seqs=2, device="cpu", executor=executor) as engine,
        scripted(engine, "b"),  # no delimiter: one step of 400 tokens
        replaced(engine, Role.DRAFT, passes := Slowly(engine)),
    ):
        long, other = engine.stream("x", tokens), engine.stream("x", tokens)
        reader = threading.Thread(target=lambda: list(long))
        reader.start()
        while passes.count < 20:
            time.sleep(0.001)
        actions: dict[str, Callable[[], object]] = {
            "own": lambda: engine.abort(long.request_id),
            "other": lambda: engine.abort(other.request_id),
            "add": lambda: engine.stream("y", tokens),
            "close": engine.close,
        }
        before = passes.count
        actions[what]()
        assert passes.count - before < 40
        for stream in (long, other):
            stream.close()
        reader.join(timeout=30)
        assert not reader.is_alive()


class Slowly:
    """The draft's forward, a few milliseconds each, counted."""

    def __init__(self, engine: Engine) -> None:
        self.count = 0
        self._forward = engine.parts.core.loop.forwards[Role.DRAFT]

    def __call__(self, batch: RowBatch) -> None:
        self.count += 1
        time.sleep(0.004)
        self._forward(batch)
