"""Models that misbehave: a failure ends its own request at most, and nothing hangs."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from rsd_engine import Clip, Constant, Engine, SamplingParams, Step, Threshold
from rsd_engine.core.events import Event
from rsd_kernels.state.enums import Role
from rsd_kernels.state.rows import RowBatch
from tests.engine.harness.runs import all_pages_free, decisions, generate
from tests.engine.harness.scripted import replaced, scripted, spoiled
from tests.tiny_models import TinyModels

GOOD = ["ab", "abcd", "abcde"]
BAD = "abc"  # the only prompt of four tokens, with bos
PARAMS = SamplingParams(temperature=1.0, seed=2, max_tokens=30)


@pytest.mark.parametrize("role", [Role.DRAFT, Role.TARGET])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(
    engine: Engine, role: Role, value: float, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, seed=2, max_tokens=30, policy=Threshold(1.1))
    wanted = generate(engine, GOOD, params)
    with spoiled(engine, role, value, prompt_length=4):
        results = generate(engine, [*GOOD, BAD], params)
    completion = results[-1].outputs[0]
    assert completion.finish_reason == "error"
    assert completion.error is not None and role.name.lower() in completion.error
    assert "not finite" in completion.error
    assert completion.token_ids == () and completion.text == ""
    for good, result in zip(wanted, results, strict=False):
        assert decisions(good) == decisions(result)
        assert result.outputs[0].error is None
    assert all_pages_free(engine)


@pytest.mark.parametrize("policy", [Threshold(0.0), Constant(1.0), Clip()])
def test_a_reward_that_is_not_a_number_never_accepts(engine: Engine, policy: Threshold) -> None:
    params = SamplingParams(temperature=1.0, seed=2, max_tokens=30, policy=policy)
    wanted = generate(engine, GOOD, params)
    with spoiled(engine, Role.PRM, math.nan, prompt_length=4):
        results = generate(engine, [*GOOD, BAD], params)
    bad = results[-1]
    steps = bad.outputs[0].steps
    assert steps and {step.source for step in steps} == {"target"}
    assert all(step.rejected and math.isnan(step.rejected.reward) for step in steps)
    assert bad.metrics.nan_rewards == len(steps) and bad.metrics.acceptance_rate == 0.0
    assert bad.outputs[0].error is None
    for good, result in zip(wanted, results, strict=False):
        assert decisions(good) == decisions(result) and result.metrics.nan_rewards == 0


@pytest.mark.parametrize("policy", [Threshold(0.0), Threshold(1.1)])
@pytest.mark.parametrize(
    ("text", "reason"),
    [("\n\n", "steps"), ("</s>", "stop"), ("\n\n</s>", "stop"), ("a</s>", "stop"), ("b", "length")],
)
def test_steps_of_nothing_do_not_loop(
    engine: Engine, policy: Threshold, text: str, reason: str
) -> None:
    """Only delimiters, end-of-text first, no delimiter: every output ends."""
    params = SamplingParams(temperature=0.0, max_tokens=40, max_steps=7, policy=policy)
    with scripted(engine, text), scripted(engine, text, role=Role.TARGET):
        [result] = generate(engine, ["x"], params)
    completion = result.outputs[0]
    assert completion.finish_reason == reason
    sizes = [len(step.token_ids) for step in completion.steps]
    expected = {"\n\n": [1] * 7, "</s>": [1], "\n\n</s>": [1, 1], "a</s>": [2], "b": [40]}[text]
    assert sizes == expected
    assert all(0 <= score <= 1 for score in _rewards(completion.steps))


def press_ctrl_c() -> None:
    """From the thread of the core: the caller's wait is torn, not this thread's work."""
    caller = threading.main_thread().ident
    assert caller is not None and caller != threading.get_ident()
    signal.pthread_kill(caller, signal.SIGINT)


def test_an_interrupt_leaves_the_engine_usable(engine: Engine) -> None:
    [wanted] = generate(engine, ["ab"], PARAMS)
    forward, passes = engine.parts.core.loop.forwards[Role.DRAFT], 0

    def interrupted(batch: RowBatch) -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            press_ctrl_c()
            time.sleep(0.2)  # the tick goes on while the caller is interrupted
        forward(batch)

    with replaced(engine, Role.DRAFT, interrupted), pytest.raises(KeyboardInterrupt):
        generate(engine, ["ab", "abcd"], PARAMS)
    assert not engine.parts.core.has_work and all_pages_free(engine)
    [again] = generate(engine, ["ab"], PARAMS)
    assert decisions(again) == decisions(wanted)


@pytest.mark.parametrize("executor", ["eager", "profile"])
def test_a_second_interrupt_while_the_first_is_served(
    tiny: TinyModels, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the caller is interrupted, nobody touches the core during a tick."""
    with Engine(**tiny.sources(), device="cpu", max_num_seqs=2, executor=executor) as engine:
        wanted = generate(engine, GOOD, PARAMS)
        core, passes, together = engine.parts.core, 0, 0
        forward, abort = core.loop.forwards[Role.DRAFT], core.abort
        in_a_pass = False

        def interrupted(batch: RowBatch) -> None:
            nonlocal passes, in_a_pass
            passes, in_a_pass = passes + 1, True
            if passes == 3:
                for _ in range(2):
                    press_ctrl_c()
                    time.sleep(0.2)
            forward(batch)
            in_a_pass = False

        def watched(key: int) -> list[Event]:
            nonlocal together
            together += in_a_pass
            return abort(key)

        monkeypatch.setattr(core, "abort", watched)
        with replaced(engine, Role.DRAFT, interrupted), pytest.raises(KeyboardInterrupt):
            generate(engine, GOOD, PARAMS)
        results = generate(engine, GOOD, PARAMS)
        assert [decisions(r) for r in results] == [decisions(r) for r in wanted]
        assert passes >= 3 and together == 0


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_while_a_step_is_handed_over(
    engine: Engine, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call waits for the step to end if it has begun, and otherwise does not wait."""
    wanted = generate(engine, GOOD, PARAMS)
    core, submit = engine.parts.core, ThreadPoolExecutor.submit
    forward, abort = core.loop.forwards[Role.DRAFT], core.abort
    together = submitted = 0
    in_a_pass = False

    def slow(batch: RowBatch) -> None:
        nonlocal in_a_pass
        in_a_pass = True
        time.sleep(0.01)
        forward(batch)
        in_a_pass = False

    def watched(key: int) -> list[Event]:
        nonlocal together
        together += in_a_pass
        return abort(key)

    def torn(*args: Any) -> Future[Any]:
        nonlocal submitted
        submitted += 1
        if submitted == 2 and not begun:
            raise KeyboardInterrupt
        future = submit(*args)
        if submitted == 2:
            time.sleep(0.02)
            raise KeyboardInterrupt
        return future

    with monkeypatch.context() as patched:
        patched.setattr(core, "abort", watched)
        patched.setattr(ThreadPoolExecutor, "submit", torn)
        with replaced(engine, Role.DRAFT, slow), pytest.raises(KeyboardInterrupt):
            generate(engine, GOOD, PARAMS)
    assert submitted >= 2 and together == 0
    assert not core.has_work and all_pages_free(engine)
    results = generate(engine, GOOD, PARAMS)
    assert [decisions(r) for r in results] == [decisions(r) for r in wanted]


def _rewards(steps: Sequence[Step]) -> list[float]:
    found = [s.rejected.reward if s.rejected else s.reward for s in steps]
    assert None not in found
    return [reward for reward in found if reward is not None]
