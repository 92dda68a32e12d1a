"""Every executor on a CPU: graphs that are lists of ops, and a graph that Python walks."""

from __future__ import annotations

from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.executors.device_loop import DeviceLoopExecutor
from rsd_engine.loop.executors.host_graphs import DirectRecorder, HostGraphsExecutor
from rsd_engine.loop.executors.simulated_runtime import SimulatedRuntime
from rsd_engine.loop.program import Block
from rsd_kernels.state.slots import ANY_ROWS
from tests.loop.toy import MakeExecutor, eager_executor


def host_graphs(program: Block, ticks_per_launch: int) -> Executor:
    return HostGraphsExecutor(program, DirectRecorder(), ticks_per_launch=ticks_per_launch)


def simulated_switch(program: Block, ticks_per_launch: int) -> Executor:
    return DeviceLoopExecutor(
        program, SimulatedRuntime(), name="switch", ticks_per_launch=ticks_per_launch
    )


def simulated_ifs(program: Block, ticks_per_launch: int) -> Executor:
    return DeviceLoopExecutor(
        program, SimulatedRuntime(has_switch=False), name="ifs", ticks_per_launch=ticks_per_launch
    )


BUCKETS = (1, 3, 8)
EXECUTORS: dict[str, tuple[MakeExecutor, tuple[int, ...]]] = {
    "eager": (eager_executor, ANY_ROWS),
    "eager-buckets": (eager_executor, BUCKETS),
    "host-graphs": (host_graphs, BUCKETS),
    "switch": (simulated_switch, BUCKETS),
    "ifs": (simulated_ifs, BUCKETS),
}
