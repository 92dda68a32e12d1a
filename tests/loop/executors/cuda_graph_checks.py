"""The executors of a GPU, as they stand, on a driver without a device.

Run by `test_cuda_graphs.py` in a process that finds the fake driver in place of the real one.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from rsd_engine import SamplingParams
from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone
from rsd_engine.loop.cuda.calls import compile_kernel, cuda_version
from rsd_engine.loop.cuda.capture_stream import CaptureStream
from rsd_engine.loop.cuda.runtime import CudaGraphRuntime
from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.executors.factory import make_executor, resolve_executor
from rsd_engine.loop.executors.graph_builder import build_graph
from rsd_engine.loop.executors.graph_runtime import Conditional, GraphError, GraphRefused
from rsd_engine.loop.executors.timed_recorder import TimedRecorder
from rsd_engine.loop.program import Block, Call, Switch, While
from rsd_engine.loop.rsd import build_program
from rsd_kernels.state.enums import Phase
from tests.core.test_random_histories import Wanted, alone, core_of, make_request
from tests.engine.executors.checks import GREEDY, SAMPLED, demo_engine, solve, told
from tests.fake_cuda.device import DEVICE, FakeDevice, device
from tests.loop.executors.guessing import MAX_GUESSES, Counts, counts, run_guessing
from tests.loop.executors.on_cpu import BUCKETS, EXECUTORS
from tests.loop.executors.test_executors import REQUESTS, flag, guesses, wanted
from tests.loop.toy import Mode, run, story
from tests.page_checks import check_integrity

__all__ = ["device", "guesses", "wanted"]  # fixtures

EXECUTORS_OF_A_GPU = {  # and what CUDA the driver knows
    "switch": ("device-loop", 13000),
    "ifs": ("device-loop", 12040),
    "host-graphs": ("host-graphs", 13000),
    "profile": ("profile", 13000),
}


def executor_on(fake: FakeDevice, name: str, program: Block, ticks_per_launch: int) -> Executor:
    """The executor that a GPU would run, over the fake driver."""
    kind, version = EXECUTORS_OF_A_GPU[name]
    fake.set_version(version)
    executor = make_executor(kind, fake.on_device(program), DEVICE)
    assert executor.name == kind
    executor.ticks_per_launch = ticks_per_launch
    return executor


@pytest.fixture
def cores(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., EngineCore]]:
    """Makes toy cores that run on the fake driver."""
    made: list[EngineCore] = []

    def make(
        num_slots: int, num_pages: int, ticks: int, name: str, max_guesses: int = 0
    ) -> EngineCore:
        def on_device(program: Block, ticks_per_launch: int) -> Executor:
            return executor_on(device, name, program, ticks_per_launch)

        monkeypatch.setitem(EXECUTORS, f"cuda-{name}", (on_device, BUCKETS))
        core = core_of(num_slots, num_pages, ticks, f"cuda-{name}", max_guesses=max_guesses)
        made.append(core)
        return made[-1]

    yield make
    for core in made:
        core.close()
    assert device.fault() == ""


@pytest.mark.parametrize("ticks", [1, 5, 1000])
@pytest.mark.parametrize("num_pages", [24, 400])
@pytest.mark.parametrize("name", EXECUTORS_OF_A_GPU)
def test_decides_as_the_eager_executor_does(
    name: str,
    num_pages: int,
    ticks: int,
    cores: Callable[..., EngineCore],
    wanted: dict[int, list[str]],
) -> None:
    core = cores(3, num_pages, ticks, name)
    found = {key: story(events) for key, events in run(core, REQUESTS).items()}
    assert found == wanted
    assert (core.num_preemptions > 0) == (num_pages == 24)


@pytest.mark.parametrize("name", EXECUTORS_OF_A_GPU)
def test_guesses_as_the_eager_executor_does(
    name: str, cores: Callable[..., EngineCore], wanted: dict[int, list[str]], guesses: Counts
) -> None:
    events = run_guessing(cores(3, 400, 40, name, MAX_GUESSES), REQUESTS)
    assert {key: story(found) for key, found in events.items()} == wanted
    assert counts(events) == guesses


@pytest.mark.parametrize("name", ["switch", "ifs"])
def test_one_launch_runs_many_steps_while_the_host_reads(
    name: str, cores: Callable[..., EngineCore], wanted: dict[int, list[str]]
) -> None:
    core = cores(4, 400, 1 << 16, name)
    found = run(core, REQUESTS[:4])
    assert core.stats.launches == 1
    assert [story(found[key]) for key in range(4)] == [wanted[key] for key in range(4)]


def test_abort_and_admission_end_a_launch(
    device: FakeDevice, cores: Callable[..., EngineCore], wanted: dict[int, list[str]]
) -> None:
    core = cores(2, 400, 1 << 16, "switch")
    device.seconds_per_op = 1e-3
    core.add(0, REQUESTS[8])
    events = core.next_events()
    running = core.in_flight
    assert events and running, "the launch was to go on by itself"
    core.add(1, REQUESTS[5])
    ended = core.abort(0)
    assert not core.in_flight and story(ended)[-1] == "done: ABORTED"
    assert int(core.state.phase[0]) == Phase.FREE
    device.seconds_per_op = 0.0
    while core.has_work:
        events += core.next_events()
    found = [event for event in (*events, *ended) if event.key == 1]
    assert story(found) == wanted[5]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["switch", "host-graphs"])
def test_whatever_the_host_does_meanwhile(
    name: str, seed: int, device: FakeDevice, cores: Callable[..., EngineCore]
) -> None:
    """Requests come, are dropped and lose their pages while the loop runs in another thread."""
    rng = random.Random(seed)
    core = cores(3, rng.randint(40, 90), rng.choice([3, 40, 1 << 16]), name)
    device.seconds_per_op = rng.choice([0.0, 2e-5, 2e-4])
    wanted: dict[int, Wanted] = {}
    events: list[Event] = []
    acts: list[Callable[[], object]] = [
        lambda: events.extend(core.next_events()),
        lambda: events.extend(core.abort(rng.choice(list(wanted)))),
        lambda: time.sleep(rng.random() * 3e-3),
        core.ask_to_return,
        core.preempt_youngest,
        lambda: admit(),
    ]

    def admit() -> None:
        temperature, policy = rng.choice([0.0, 1.0]), rng.randrange(4)
        request: Wanted = (
            "abcdefgh"[: rng.randint(1, 8)], rng.randrange(5), temperature, rng.randint(1, 30),
            policy, rng.choice([Mode.RSD, Mode.RSD, Mode.DRAFT, Mode.TARGET]),
        )  # fmt: skip
        if core.check(make_request(request)) is None:
            wanted[len(wanted)] = request
            core.add(len(wanted) - 1, make_request(request))

    for _ in range(3):
        admit()
    for act in rng.choices(acts, weights=[8, 1, 4, 1, 1, 2], k=60):
        act()
    device.seconds_per_op = 0.0
    while core.has_work:
        events += core.next_events()
    check_integrity(core.state, core.loop.tokens_per_page)
    assert int(core.state.num_free) == core.state.free_pages.shape[0]
    for key, request in wanted.items():
        found = [event for event in events if event.key == key]
        assert [isinstance(event, RequestDone) for event in found].index(True) == len(found) - 1
        told, full = story(found), alone(request)
        assert told == full or (told[-1] == "done: ABORTED" and told[:-1] == full[: len(told) - 1])


def test_any_thread_may_launch(
    cores: Callable[..., EngineCore], wanted: dict[int, list[str]]
) -> None:
    """A thread that never used the device has no context of its own."""
    for name in ("switch", "host-graphs"):
        core, found = cores(3, 400, 1000, name), {}
        thread = threading.Thread(target=lambda: found.update(run(core, REQUESTS)))  # noqa: B023
        thread.start()
        thread.join()
        assert {key: story(events) for key, events in found.items()} == wanted


def test_a_thousand_launches_leave_nothing_behind(
    device: FakeDevice, cores: Callable[..., EngineCore]
) -> None:
    core = cores(3, 400, 1, "switch")
    alive = device.num_alive()
    while core.stats.launches < 1000:
        run(core, REQUESTS[:3])
    assert device.num_alive() == alive == 3  # the graph, made executable, and the arm kernel


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_demo_family(params: SamplingParams, device: FakeDevice) -> None:
    with demo_engine("eager", 4) as engine:
        core = engine.parts.core
        core.ticks_per_launch = 16
        expected = told(solve(engine, params))
        core.executor = executor_on(device, "switch", build_program(core.loop), 16)
        assert told(solve(engine, params)) == expected
    assert device.fault() == ""


@pytest.mark.parametrize("name", ["switch", "host-graphs"])
def test_a_launch_waits_for_what_the_host_has_sent(name: str, device: FakeDevice) -> None:
    ran: list[str] = []
    running = flag(1)

    def turn() -> None:
        ran.append("turn")
        running.zero_()

    executor = executor_on(
        device, name, (While(running, (Call("turn", turn, sets=(running,)),)),), 8
    )
    ran.clear()

    def write() -> None:
        time.sleep(0.05)
        running.fill_(1)
        ran.append("written")

    device.launch(write)
    executor.start()
    while not executor.poll():
        time.sleep(0.001)
    assert ran == ["written", "turn"]
    executor.close()


@pytest.mark.parametrize("has_switch", [True, False])
def test_every_node_follows_the_one_before(has_switch: bool, device: FakeDevice) -> None:
    """Ops before, between and behind conditional nodes, one inside another."""
    ran: list[str] = []
    running, chosen, inner = flag(1), flag(), flag()

    def op(name: str, *sets: torch.Tensor) -> Call:
        def fn() -> None:
            ran.append(name)
            turn = ran.count("schedule")
            if name == "schedule":
                chosen.fill_(turn - 1)
                running.fill_(turn < 4)
                inner.fill_(turn % 2)
            elif name == "inner":
                inner.fill_(ran.count("inner") % 2)

        return Call(name, fn, sets)

    body: Block = (
        op("schedule", running, chosen, inner),
        Switch(chosen, ((op("a"), op("b")), (op("c"),), (op("d"),))),
        op("between"),
        While(inner, (op("inner", inner), op("inner's end"))),
        op("end"),
    )
    program: Block = (While(running, body), op("last"))
    capture = CaptureStream(DEVICE)
    runtime = CudaGraphRuntime(capture, has_switch=has_switch)
    build_graph(device.on_device(program), runtime)
    for _ in range(2):
        ran.clear()
        running.fill_(1)
        runtime.launch()
        capture.stream.synchronize()
        turns = [["a", "b"], ["c"], ["d"], []]
        loops = [["inner", "inner's end"] * 2, [], ["inner", "inner's end"] * 2, []]
        wanted: list[str] = []
        for turn, loop in zip(turns, loops, strict=True):
            wanted += ["schedule", *turn, "between", *loop, "end"]
        assert ran == [*wanted, "last"]
    runtime.close()
    assert device.fault() == ""


def test_every_op_is_timed(cores: Callable[..., EngineCore]) -> None:
    core = cores(3, 400, 1000, "profile")
    recorder = core.executor.recorder  # type: ignore[attr-defined]
    assert isinstance(recorder, TimedRecorder)
    recorder.reset()
    run(core, REQUESTS[:3])
    times = recorder.times()
    assert times["schedule"].calls == core.stats.ticks
    assert times["PRM.score"].calls == times["PRM.forward"].calls > 0
    assert all(time.seconds > 0 for time in times.values())


def test_the_driver_says_which_nodes_there_are(device: FakeDevice) -> None:
    known = [
        (12030, "host-graphs", False),
        (12040, "device-loop", False),
        (12080, "device-loop", True),
        (13000, "device-loop", True),
    ]
    for version, executor, has_switch in known:
        device.set_version(version)
        assert cuda_version() == version
        assert resolve_executor("auto", DEVICE) == executor
        runtime = CudaGraphRuntime(CaptureStream(DEVICE))
        assert runtime.has_switch == has_switch
        chosen, running = flag(), flag()
        nothing = (Call("nothing", lambda: device.launch(lambda: None)),)
        sets = Call("sets", lambda: device.launch(lambda: None), sets=(chosen, running))
        build_graph((While(running, (sets, Switch(chosen, (nothing, nothing)))),), runtime)
        runtime.close()
    assert device.fault() == ""


class TestErrors:
    def program(self, fn: Callable[[], None]) -> Block:
        return (Call("first", lambda: None), Call("second", fn))

    def fails(self, device: FakeDevice, fn: Callable[[], None]) -> str:
        runtime = CudaGraphRuntime(CaptureStream(DEVICE))
        with pytest.raises(GraphError) as error:
            build_graph(self.program(fn), runtime)
        device.driver.fake_abandon()
        return str(error.value)

    def test_an_op_that_raises_is_named(self, device: FakeDevice) -> None:
        def fn() -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

        said = self.fails(device, fn)
        assert said.startswith("second cannot be captured into a CUDA graph: operation not perm")

    def test_an_op_that_spoils_the_capture_is_named(self, device: FakeDevice) -> None:
        said = self.fails(device, device.invalidate_capture)
        assert said.startswith("second cannot be captured") and "invalidated" in said

    def test_what_the_driver_refuses_is_said_with_a_way_out(self, device: FakeDevice) -> None:
        runtime = CudaGraphRuntime(CaptureStream(DEVICE))
        runtime.create_handle()
        with pytest.raises(GraphRefused, match=r"CUDA_ERROR_INVALID_VALUE.*host-graphs"):
            runtime.instantiate()
        assert device.fault() == "a handle is tested by no conditional node"

    def test_auto_takes_that_way(
        self, device: FakeDevice, caplog: pytest.LogCaptureFixture, wanted: dict[int, list[str]]
    ) -> None:
        device.driver.fake_take_conditionals(0)

        def core(name: str) -> EngineCore:
            def on_device(program: Block, ticks_per_launch: int) -> Executor:
                return make_executor(name, device.on_device(program), DEVICE)

            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(EXECUTORS, name, (on_device, BUCKETS))
                return core_of(3, 400, 1000, name)

        with pytest.raises(GraphRefused, match="does not make the graph .* executable"):
            core("device-loop")
        plain = core("auto")
        assert plain.executor.name == "host-graphs"
        assert "executor='host-graphs'" in caplog.text
        found = run(plain, REQUESTS)
        plain.close()
        assert {key: story(events) for key, events in found.items()} == wanted

    def test_a_source_that_does_not_compile(self, device: FakeDevice) -> None:
        with pytest.raises(GraphError, match="other does not compile: .*other"):
            compile_kernel("void f( {", "other", (9, 0))

    def test_allocations_are_counted_by_op(self, device: FakeDevice) -> None:
        def allocates() -> None:
            device.num_allocations += 2

        capture = CaptureStream(DEVICE)
        runtime = CudaGraphRuntime(capture)
        build_graph(self.program(allocates), runtime)
        runtime.close()
        assert dict(capture.allocations) == {"second": 2}


class TestTheDriver:
    """What the tests above rely on: the fake refuses what CUDA refuses."""

    def test_nodes_that_no_edge_orders_run_in_the_worst_order(self, device: FakeDevice) -> None:
        ran: list[str] = []
        capture = CaptureStream(DEVICE)
        runtime = CudaGraphRuntime(capture)
        calls = [
            Call(name, lambda name=name: device.launch(lambda: ran.append(name)))  # type: ignore[misc]
            for name in ("first", "second")
        ]
        for call in calls:
            runtime.capture(runtime.root, (), [call])  # the second does not follow the first
        runtime.instantiate()
        runtime.launch()
        capture.stream.synchronize()
        assert ran == ["second", "first"]
        runtime.close()

    def test_a_handle_serves_one_node_with_a_body_that_does_something(
        self, device: FakeDevice
    ) -> None:
        runtime = CudaGraphRuntime(CaptureStream(DEVICE))
        handle = runtime.create_handle()
        after, _ = runtime.add_conditional(runtime.root, (), Conditional.WHILE, handle, 1)
        with pytest.raises(GraphError, match="INVALID_VALUE"):
            runtime.add_conditional(runtime.root, after, Conditional.IF, handle, 1)
        assert device.fault() == "a handle of two nodes"
        device.driver.fake_forget_fault()
        with pytest.raises(GraphError, match="INVALID_VALUE"):
            runtime.instantiate()
        assert device.fault() == "the body of a conditional node is empty"
        device.driver.fake_abandon()
