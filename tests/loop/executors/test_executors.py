"""All executors run the same program to the same end, and the program is sound as data."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsd_engine.loop.executors.eager import EagerExecutor
from rsd_engine.loop.executors.graph_builder import build_graph
from rsd_engine.loop.executors.graph_runtime import Arm, Conditional, GraphError
from rsd_engine.loop.executors.host_graphs import DirectRecorder, HostGraphsExecutor
from rsd_engine.loop.executors.simulated_runtime import SimulatedRuntime
from rsd_engine.loop.program import Block, Call, ProgramError, Switch, While, calls, check_program
from rsd_engine.loop.rsd import build_program
from rsd_kernels.state.enums import GuessSource, HostRequest, Phase, Role
from rsd_kernels.state.slots import ANY_ROWS
from tests.core.test_random_histories import core_of, make_request
from tests.loop.executors.guessing import MAX_GUESSES, Counts, counts, run_guessing
from tests.loop.executors.on_cpu import BUCKETS, EXECUTORS
from tests.loop.toy import Mode, run, story

REQUESTS = [
    make_request(("abc" * (1 + i % 3), i, float(i % 2), 8 + 3 * i, i % 4, list(Mode)[i % 3]))
    for i in range(9)
]


@pytest.fixture(scope="module")
def wanted() -> dict[int, list[str]]:
    events = run(core_of(3, 400, 64), REQUESTS)
    return {key: story(found) for key, found in events.items()}


@pytest.fixture(scope="module")
def guesses() -> Counts:
    """As the eager executor makes and keeps them."""
    found = counts(run_guessing(core_of(3, 400, 40, max_guesses=MAX_GUESSES), REQUESTS))
    assert {source for by_source in found.values() for source in by_source} == set(GuessSource)
    return found


def flag(value: int = 0) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int32)


class TestSameResults:
    @pytest.mark.parametrize("ticks", [1, 5, 1000])
    @pytest.mark.parametrize("num_pages", [24, 400])
    @pytest.mark.parametrize("name", sorted(EXECUTORS))
    def test_every_executor_decides_alike(
        self, name: str, num_pages: int, ticks: int, wanted: dict[int, list[str]]
    ) -> None:
        core = core_of(3, num_pages, ticks, name)
        found = {key: story(events) for key, events in run(core, REQUESTS).items()}
        assert found == wanted
        assert (core.num_preemptions > 0) == (num_pages == 24)
        core.close()

    @pytest.mark.parametrize("name", sorted(EXECUTORS))
    def test_guesses_change_no_result_and_are_the_same_everywhere(
        self, name: str, wanted: dict[int, list[str]], guesses: Counts
    ) -> None:
        core = core_of(3, 400, 40, name, max_guesses=MAX_GUESSES)
        events = run_guessing(core, REQUESTS)
        assert {key: story(found) for key, found in events.items()} == wanted
        assert counts(events) == guesses
        core.close()

    @pytest.mark.parametrize("name", ["switch", "ifs", "host-graphs"])
    def test_a_long_launch_needs_the_host_only_to_admit(self, name: str) -> None:
        core = core_of(4, 400, 1 << 16, name)
        run(core, REQUESTS[:4])
        assert core.stats.launches == 1
        core = core_of(2, 400, 1 << 16, name)
        run(core, REQUESTS[:6])
        # At most one return for each request that waits for a slot, and the last.
        assert core.stats.launches <= 5
        assert core.stats.ticks >= 6 * core.stats.launches


class TestProgram:
    def test_the_loop_is_one_while_over_plan_and_bodies(self) -> None:
        core = core_of(4, 100, 8, "switch")
        (loop,) = build_program(core.loop)
        assert isinstance(loop, While) and loop.flag is core.state.running
        schedule, switch = loop.body
        assert isinstance(schedule, Call) and isinstance(switch, Switch)
        assert schedule.sets == (core.state.running, core.state.pass_body)
        assert len(switch.bodies) == len(Role) * len(BUCKETS) and all(switch.bodies)

    def test_flags_are_set_before_they_are_read(self) -> None:
        index, running = flag(), flag()
        nothing = Call("nothing", lambda: None)
        sets = Call("sets", lambda: None, sets=(index, running))
        check_program((While(running, (sets, Switch(index, ((nothing,),)))),))
        with pytest.raises(ProgramError, match="no op before it has set"):
            check_program((While(running, (Switch(index, ()), sets)),))
        with pytest.raises(ProgramError, match="cannot end"):
            check_program((While(running, (nothing,)),))
        with pytest.raises(ProgramError, match="no op before it has set"):
            inner = While(flag(), (nothing,))
            check_program((While(running, (sets, inner)),))

    def test_ops_set_no_flag_that_they_do_not_name(self) -> None:
        core = core_of(3, 24, 8, "eager-buckets")
        flags = (core.state.running, core.state.pass_body)
        undeclared = []

        def watched(call: Call) -> Call:
            def fn() -> None:
                before = [int(f) for f in flags]
                for f in flags:
                    f.fill_(77)  # so that writing the value it had is seen too
                call.fn()
                for f, value in zip(flags, before, strict=True):
                    if int(f) == 77:
                        f.fill_(value)
                    elif not any(f is named for named in call.sets):
                        undeclared.append(call.name)

            return Call(call.name, fn, call.sets)

        program = mapped(build_program(core.loop), watched)
        core.executor = EagerExecutor(program, ticks_per_launch=8)
        run(core, REQUESTS)
        assert not undeclared

    def test_every_launch_has_a_cap(self) -> None:
        core = core_of(2, 100, 3, "switch")
        core.add(0, REQUESTS[8])
        core.next_events()
        assert int(core.state.tick) == 4  # the tick past the cap only returns
        assert core.has_work

    def test_no_op_returns_or_keeps_new_storage(self) -> None:
        core = core_of(3, 24, 8, "eager-buckets")
        kept: list[str] = []

        def watched(call: Call) -> Call:
            def fn() -> None:
                with _Made() as made:
                    result = call.fn()  # type: ignore[func-returns-value]
                if result is not None or made.alive():
                    kept.append(call.name)

            return Call(call.name, fn, call.sets)

        program = mapped(build_program(core.loop), watched)
        core.executor = EagerExecutor(program, ticks_per_launch=8)
        run(core, REQUESTS)
        assert not kept

    def test_the_check_of_storage_can_fail(self) -> None:
        held = []
        with _Made() as made:
            held.append(torch.zeros(3))
        assert made.alive()
        held.clear()
        assert not made.alive()


class TestGraph:
    def graph(self, *, has_switch: bool = True) -> SimulatedRuntime:
        runtime = SimulatedRuntime(has_switch=has_switch)
        build_graph(build_program(core_of(4, 100, 8, "switch").loop), runtime)
        return runtime

    def test_the_tree_with_switch(self) -> None:
        root = self.graph().root.nodes
        assert isinstance(root[0].work, Arm) and root[1].kind is Conditional.WHILE
        schedule, *arms, switch = root[1].bodies[0].nodes
        assert isinstance(schedule.work, Call) and schedule.work.name == "schedule"
        armed = [arm.work.handle for arm in arms if isinstance(arm.work, Arm)]
        assert len(armed) == len(arms) and {*armed} == {root[1].handle, switch.handle}
        assert switch.kind is Conditional.SWITCH
        assert len(switch.bodies) == len(Role) * len(BUCKETS)
        names = [n.work.name for n in switch.bodies[0].nodes if isinstance(n.work, Call)]
        assert names[0] == "DRAFT.forward" and names[-1] == "DRAFT.end_step"

    def test_the_tree_without_switch_has_an_if_a_body(self) -> None:
        root = self.graph(has_switch=False).root.nodes
        _, *rest = root[1].bodies[0].nodes
        arms = [n.work for n in rest if isinstance(n.work, Arm)]
        ifs = [n for n in rest if n.kind is Conditional.IF]
        assert len(ifs) == len(Role) * len(BUCKETS)
        assert sorted(a.equals for a in arms if a.equals is not None) == list(range(len(ifs)))

    @pytest.mark.parametrize("has_switch", [True, False])
    @pytest.mark.parametrize("index", [0, 1, 2, 3])
    def test_a_switch_runs_the_body_it_names_or_none(self, index: int, has_switch: bool) -> None:
        chosen, ran = flag(), list[int]()
        bodies = tuple((Call(f"b{i}", partial(ran.append, i)),) for i in range(3))

        def choose() -> None:
            chosen.fill_(index)

        sets = Call("sets", choose, sets=(chosen,))
        runtime = SimulatedRuntime(has_switch=has_switch)
        build_graph((sets, Switch(chosen, bodies)), runtime)
        runtime.launch()
        assert ran == ([index] if index < 3 else [])

    def test_a_handle_keeps_its_value_until_it_is_set(self) -> None:
        """As in CUDA: the default comes back at a launch, not when a node is reached again."""
        running, inner, turns = flag(1), flag(), []

        def begin() -> None:
            turns.append("outer")
            inner.fill_(len(turns) == 1)
            running.fill_(len(turns) < 4)

        def end() -> None:
            turns.append("inner")
            inner.fill_(0)

        program: Block = (
            While(
                running,
                (
                    Call("begin", begin, sets=(inner, running)),
                    While(inner, (Call("end", end, sets=(inner,)),)),
                ),
            ),
        )
        runtime = SimulatedRuntime()
        build_graph(program, runtime)
        runtime.launch()
        assert turns == ["outer", "inner", "outer", "outer"]
        turns.clear()
        running.fill_(0)
        runtime.launch()
        assert turns == []

    def test_what_cuda_refuses(self) -> None:
        runtime = SimulatedRuntime()
        runtime.create_handle()
        with pytest.raises(GraphError, match="no conditional node tests"):
            runtime.instantiate()
        runtime = SimulatedRuntime()
        runtime.add_conditional(runtime.root, (), Conditional.WHILE, runtime.create_handle(), 1)
        with pytest.raises(GraphError, match="is empty"):
            runtime.instantiate()
        with pytest.raises(GraphError, match="before it was instantiated"):
            runtime.launch()
        runtime.capture(runtime.root, (runtime.root.nodes[0],), ())
        with pytest.raises(GraphError, match="must follow the last one"):
            runtime.capture(runtime.root, (), ())

    def test_roles_that_are_not_there_get_bodies_that_do_nothing(self) -> None:
        core = core_of(2, 100, 8, "switch")
        del core.loop.forwards[Role.PRM]
        runtime = SimulatedRuntime()
        build_graph(build_program(core.loop), runtime)  # no empty body: it hangs some drivers


class TestHostGraphs:
    def test_a_run_of_ops_is_one_graph(self) -> None:
        core = core_of(3, 100, 8, "switch")
        recorder = DirectRecorder()
        HostGraphsExecutor(build_program(core.loop), recorder, ticks_per_launch=8)
        schedule, *bodies = recorder.recorded
        assert schedule == ("schedule",)
        assert bodies[0][0] == "DRAFT.forward" and bodies[0][-1] == "DRAFT.end_step"
        assert bodies[-1] == ("PRM.forward", "PRM.advance", "PRM.score")
        assert len(recorder.recorded) == 1 + len(Role) * len(BUCKETS)

    @pytest.mark.parametrize("program", [(), (Call("a", lambda: None),)])
    def test_only_one_while(self, program: Block) -> None:
        with pytest.raises(ProgramError, match="one While"):
            HostGraphsExecutor(program, DirectRecorder(), ticks_per_launch=8)


class TestWhileALaunchRuns:
    """`host-graphs` gives the host a turn after every tick, the device loop at any time."""

    def test_steps_are_told_before_the_launch_returns(self) -> None:
        core = core_of(2, 400, 1 << 16, "host-graphs")
        core.add(0, REQUESTS[8])
        first = core.next_events()
        assert first and core.in_flight
        while core.has_work:
            first += core.next_events()
        assert core.stats.launches == 1 and story(first)[-1].startswith("done")

    def test_abort_ends_the_launch_and_tells_what_was_decided(self) -> None:
        core = core_of(2, 400, 1 << 16, "host-graphs")
        core.add(0, REQUESTS[8])
        core.add(1, REQUESTS[5])
        told = core.next_events()
        ended = core.abort(0)
        assert not core.in_flight and story(ended)[-1] == "done: ABORTED"
        assert int(core.state.phase[0]) == Phase.FREE
        while core.has_work:
            told += core.next_events()
        wanted = run(core_of(2, 400, 64), [REQUESTS[5]])[0]
        others = [e for e in [*told, *ended] if e.key == 1]
        assert story(others) == story(wanted)

    def test_a_new_request_makes_the_launch_return(self) -> None:
        core = core_of(2, 400, 1 << 16, "host-graphs")
        core.add(0, REQUESTS[8])
        core.next_events()
        core.add(1, REQUESTS[5])
        assert int(core.state.host_request) == HostRequest.RETURN
        core.add(2, REQUESTS[2])
        while core.has_work:
            core.next_events()
        assert core.stats.launches > 1

    def test_all_rows_and_buckets_are_the_rows_of_the_state(self) -> None:
        assert core_of(1, 50, 8).state.row_buckets.tolist() == list(ANY_ROWS)
        assert core_of(1, 50, 8, "ifs").state.row_buckets.tolist() == list(BUCKETS)


def mapped(block: Block, change: Any) -> Block:
    """The program with every op changed."""

    def nodes() -> Iterator[Any]:
        for node in block:
            if isinstance(node, Call):
                yield change(node)
            elif isinstance(node, While):
                yield While(node.flag, mapped(node.body, change))
            else:
                yield Switch(node.index, tuple(mapped(body, change) for body in node.bodies))

    changed = tuple(nodes())
    assert [c.name for c in calls(changed)] == [c.name for c in calls(block)]
    return changed


class _Made(TorchDispatchMode):
    """Storage that came into being; of what is still there, something holds it."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: list[weakref.ref[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if tensor.untyped_storage().data_ptr() not in before and tensor.numel():
                self._tensors.append(weakref.ref(tensor))
        return result

    def alive(self) -> bool:
        gc.collect(0)
        return any(ref() is not None for ref in self._tensors)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def test_ticks_and_the_time_between_them_are_stamped() -> None:
    core = core_of(2, 200, 1 << 16, "host-graphs")
    started = time.perf_counter_ns()
    run(core, REQUESTS[:3])
    whole = time.perf_counter_ns() - started
    busy, idle = int(core.state.tick_nanoseconds), int(core.state.idle_nanoseconds)
    assert idle > 0 and busy > 0 and busy + idle < whole
    assert busy > int(core.state.nanoseconds.sum()) > 0
