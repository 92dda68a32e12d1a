"""The executor that runs the loop on the device: one graph, launched once for many ticks."""

from __future__ import annotations

import time

from rsd_engine.loop.executors.base import annotate
from rsd_engine.loop.executors.graph_builder import build_graph
from rsd_engine.loop.executors.graph_runtime import GraphRuntime
from rsd_engine.loop.program import Block

_POLL_SECONDS = 20e-6  # a step takes milliseconds; meanwhile other threads of the host run


class DeviceLoopExecutor:
    """Builds the program into `runtime`. While a launch runs, the host only reads the log.

    Raises:
        ProgramError: a flag is read before it is set.
        GraphError: an op cannot be captured.
        GraphRefused: CUDA does not make the graph executable.
    """

    blocks = False

    def __init__(
        self, program: Block, runtime: GraphRuntime, *, name: str, ticks_per_launch: int
    ) -> None:
        self.name = name
        self.ticks_per_launch = ticks_per_launch
        self._runtime = runtime
        build_graph(program, runtime)

    def start(self) -> None:
        with annotate("launch"):
            self._runtime.launch()

    def poll(self) -> bool:
        if self._runtime.finished():
            return True
        time.sleep(_POLL_SECONDS)
        return False

    def close(self) -> None:
        self._runtime.close()
