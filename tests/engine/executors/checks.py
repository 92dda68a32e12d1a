"""All executors of one device give the same tokens, rewards and decisions, bit for bit.

Run by `test_executors.py` on a CPU, with the graph simulated, and on a GPU in a process of its own:
a capture that fails leaves a process unfit to use the device.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from bench.loop.runs import using
from rsd_engine import Engine, FinishedEvent, RequestOutput, SamplingParams, Threshold
from rsd_engine.core.engine_core import EngineCore
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate as make_problems
from rsd_engine.engine.dispatcher import StreamEvent
from rsd_engine.loop.executors.device_loop import DeviceLoopExecutor
from rsd_engine.loop.executors.factory import make_executor
from rsd_engine.loop.rsd import build_program
from rsd_kernels.schedule.rules import BatchingRule
from tests.page_checks import check_integrity

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRAPHS = ("host-graphs", "device-loop") if DEVICE == "cuda" else ("simulated-loop",)
COUNT = int(os.environ.get("RSD_TEST_PROBLEMS", "12"))
PROBLEMS = make_problems(0, "test", COUNT)
GREEDY = SamplingParams(temperature=0.0, max_tokens=200, seed=1)
SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, max_tokens=200, seed=1)


@contextmanager
def demo_engine(executor: str, slots: int, pages: int | None = None) -> Iterator[Engine]:
    """The demo family in fp32, with memory for `pages` pages if that is given."""
    opened = partial(
        Engine, checkpoint_dir("draft"), checkpoint_dir("target"), checkpoint_dir("prm"),
        device=DEVICE, dtype="float32", max_model_len=400, max_num_seqs=slots,
    )  # fmt: skip
    memory = None
    if pages is not None:
        with opened() as roomy:
            memory = pages * roomy.parts.pool.page_bytes
    with opened(executor=executor, kv_cache_memory_bytes=memory) as engine:
        yield engine


def solve(engine: Engine, params: SamplingParams) -> list[RequestOutput]:
    chats = [[{"role": "user", "content": problem.question}] for problem in PROBLEMS]
    return engine.chat(chats, params, use_tqdm=False)


Told = tuple[list[tuple[Any, ...]], str]  # every step, and how the output ended


def told(results: Sequence[RequestOutput]) -> list[Told]:
    """Tokens, sources, rewards to the last bit, and how each output ended."""
    return [
        (
            [
                (s.token_ids, s.source, s.reward, s.rejected and (s.rejected.token_ids,
                                                                  s.rejected.reward))
                for s in result.outputs[0].steps
            ],
            result.outputs[0].finish_reason,
        )
        for result in results
    ]  # fmt: skip


def last_output(events: Iterable[StreamEvent]) -> RequestOutput:
    *_, last = events
    assert isinstance(last, FinishedEvent)
    return last.output


def same_launches(core: EngineCore, ticks: int) -> None:
    """With launches of equal length, every executor admits requests at the same ticks."""
    core.ticks_per_launch = ticks


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("slots", [4, 1, 16])  # the most telling first: time may run out
def test_same_tokens_rewards_and_decisions(slots: int, params: SamplingParams) -> None:
    found = {}
    for executor in ("eager", *GRAPHS):
        with demo_engine(executor, slots) as engine:
            same_launches(engine.parts.core, 16)
            found[executor] = told(solve(engine, params))
            check_integrity(engine.parts.core.state, engine.parts.core.loop.tokens_per_page)
    assert any(step[3] for steps, _ in found["eager"] for step in steps), "nothing was rejected"
    for executor in GRAPHS:
        assert found[executor] == found["eager"], executor


@pytest.mark.parametrize("executor", GRAPHS)
def test_pages_run_short(executor: str) -> None:
    params = replace(GREEDY, max_step_tokens=16)  # little is held back when one is admitted
    with demo_engine("eager", 6) as engine:
        wanted = told(solve(engine, params))
    with demo_engine(executor, 6, pages=52) as engine:
        found = told(solve(engine, params))
        assert engine.num_preemptions > 0
        state = engine.parts.core.state
        assert int(state.num_free) == state.free_pages.shape[0]
    differ = [i for i in range(COUNT) if found[i] != wanted[i]]
    # Resuming reads many rows at once, and sums of another shape may round another way.
    assert [steps_of(found[i]) for i in differ] == [steps_of(wanted[i]) for i in differ]


def exact(results: Sequence[RequestOutput]) -> list[Told]:
    """On a CPU the eager executor has no padded rows, and its products may round differently."""
    return told(results) if DEVICE == "cuda" else [steps_of(request) for request in told(results)]


def steps_of(request: Told) -> Told:
    """The same without rewards."""
    steps, finish = request
    return [(s[0], s[1], s[3] and s[3][0]) for s in steps], finish


@pytest.mark.parametrize("executor", GRAPHS)
def test_parameters_change_without_a_new_graph(executor: str) -> None:
    """Thresholds, sampling, limits, stop strings and modes are tensors that the graph reads."""
    variants = [
        GREEDY,
        SAMPLED,
        SamplingParams(temperature=0.0, max_tokens=17),
        SamplingParams(temperature=0.0, max_tokens=100, policy=Threshold(0.99), max_steps=2),
        SamplingParams(temperature=0.0, max_tokens=100, mode="target", stop=["="]),
        SamplingParams(temperature=0.7, seed=3, max_tokens=60, mode="draft", logprobs=2),
    ]
    with demo_engine("eager", 4) as plain, demo_engine(executor, 4) as engine:
        same_launches(engine.parts.core, 16)
        for params in variants:
            assert exact(solve(engine, params)) == exact(solve(plain, params)), params


@pytest.mark.parametrize("executor", GRAPHS)
def test_stream_abort_and_admission_while_others_run(executor: str) -> None:
    questions = [problem.question for problem in PROBLEMS[:6]]
    with demo_engine("eager", 2) as engine:
        wanted = told(solve(engine, GREEDY))
    with demo_engine(executor, 2) as engine:
        streams = [
            engine.stream([{"role": "user", "content": question}], GREEDY) for question in questions
        ]
        victim = iter(streams[1])
        next(victim)
        engine.abort(streams[1].request_id)
        ends = {i: last_output(stream) for i, stream in enumerate(streams) if i != 1}
        assert last_output(victim).outputs[0].finish_reason == "abort"
        for i, output in ends.items():
            assert steps_of(told([output])[0]) == steps_of(wanted[i])


@pytest.mark.parametrize("executor", GRAPHS)
def test_the_order_of_passes_changes_nothing(executor: str) -> None:
    with demo_engine(executor, 4) as engine:
        core, wanted = engine.parts.core, told(solve(engine, GREEDY))
        for rule in (BatchingRule.EVERY_ROLE, BatchingRule.LOCK_STEP):
            program = build_program(replace(core.loop, rule=rule))
            other = make_executor(executor, program, torch.device(DEVICE))
            with using(core, other):
                found = told(solve(engine, GREEDY))
            other.close()
            # Other rows share a pass, and sums of another shape may round another way.
            assert [steps_of(one) for one in found] == [steps_of(one) for one in wanted], rule


@pytest.mark.gpu
@pytest.mark.parametrize("executor", ["host-graphs", "device-loop"])
def test_a_thousand_launches_leave_nothing_behind(executor: str) -> None:
    with demo_engine(executor, 4) as engine:
        engine.parts.core.ticks_per_launch = 2
        solve(engine, GREEDY)
        free, _ = torch.cuda.mem_get_info()
        allocated = torch.cuda.memory_allocated()
        while engine.parts.core.stats.launches < 1000:
            solve(engine, GREEDY)
        assert torch.cuda.memory_allocated() == allocated
        left, _ = torch.cuda.mem_get_info()
        assert abs(free - left) < 8 << 20


@pytest.mark.gpu
def test_no_op_allocates_while_captured() -> None:
    from rsd_engine.loop.cuda.capture_stream import CaptureStream
    from rsd_engine.loop.cuda.runtime import CudaGraphRuntime

    with demo_engine("device-loop", 4) as engine:
        capture = CaptureStream(torch.device("cuda"))
        capture.warm_up(program := build_program(engine.parts.core.loop))
        executor = DeviceLoopExecutor(
            program, CudaGraphRuntime(capture), name="watched", ticks_per_launch=16
        )
        assert not capture.allocations
        executor.close()


@pytest.mark.gpu
def test_without_switch_nodes() -> None:
    """Drivers before CUDA 12.8 have no SWITCH nodes: every body gets an IF node."""
    from rsd_engine.loop.cuda.capture_stream import CaptureStream
    from rsd_engine.loop.cuda.runtime import CudaGraphRuntime

    with demo_engine("eager", 4) as engine:
        wanted = told(solve(engine, GREEDY))
        core = engine.parts.core
        program, capture = build_program(core.loop), CaptureStream(torch.device("cuda"))
        capture.warm_up(program)
        runtime = CudaGraphRuntime(capture, has_switch=False)
        core.executor = DeviceLoopExecutor(program, runtime, name="ifs", ticks_per_launch=16)
        assert told(solve(engine, GREEDY)) == wanted


@pytest.mark.gpu
def test_one_launch_serves_many_steps() -> None:
    with demo_engine("device-loop", 4) as engine:
        results = solve(engine, GREEDY)
        steps = sum(len(result.outputs[0].steps) for result in results)
        assert engine.parts.core.stats.launches * 2 < steps
