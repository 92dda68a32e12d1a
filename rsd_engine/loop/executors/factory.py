"""Chooses and builds the executor: the one the user asked for, or the fastest that runs here."""

from __future__ import annotations

import importlib.util
import logging
import time
from typing import TYPE_CHECKING

import torch

from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.executors.device_loop import DeviceLoopExecutor
from rsd_engine.loop.executors.eager import EagerExecutor
from rsd_engine.loop.executors.graph_runtime import GraphRefused
from rsd_engine.loop.executors.host_graphs import DirectRecorder, HostGraphsExecutor, Recorder
from rsd_engine.loop.executors.simulated_runtime import SimulatedRuntime
from rsd_engine.loop.executors.timed_recorder import HostClock, StreamClock, TimedRecorder
from rsd_engine.loop.program import Block

if TYPE_CHECKING:
    from rsd_engine.loop.cuda.capture_stream import CaptureStream

logger = logging.getLogger("rsd_engine")

EXECUTORS = ("auto", "eager", "host-graphs", "device-loop", "simulated-loop", "profile")
_GPU_ONLY = ("host-graphs", "device-loop")
GRAPH_TICKS = 1 << 16  # per launch; the host can end it earlier


def resolve_executor(name: str, device: torch.device) -> str:
    """The executor that "auto" means on this device.

    Raises:
        ValueError: there is no executor of this name, or it cannot run on this device.
    """
    if name not in EXECUTORS:
        raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, got {name!r}")
    if name in _GPU_ONLY and device.type != "cuda":
        raise ValueError(f"executor={name!r} needs a CUDA device, and the engine is on {device}")
    if name != "auto":
        return name
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return "eager"
    return "device-loop" if _has_conditional_nodes() else "host-graphs"


def make_executor(name: str, program: Block, device: torch.device) -> Executor:
    """Builds the executor of this name; on a GPU it runs every op once and captures graphs.

    "auto" falls back to host graphs where CUDA refuses the graph of the device loop.

    Raises:
        ValueError: as `resolve_executor`.
        GraphError: an op cannot be captured, or CUDA refuses the device loop that was asked for.
    """
    chosen = resolve_executor(name, device)
    if chosen == "eager":
        return EagerExecutor(program)
    if chosen == "simulated-loop":
        return DeviceLoopExecutor(program, SimulatedRuntime(), name=chosen, ticks_per_launch=16)
    if device.type != "cuda":  # "profile": host graphs of one op each
        return _host_graphs(chosen, program, TimedRecorder(DirectRecorder(), HostClock()))
    from rsd_engine.loop.cuda.capture_stream import CaptureStream
    from rsd_engine.loop.cuda.recorder import CudaRecorder

    started = time.perf_counter()
    capture = CaptureStream(device)
    capture.warm_up(program)
    warm = time.perf_counter()
    executor: Executor
    if chosen == "profile":
        clock = StreamClock(capture.stream)
        executor = _host_graphs(chosen, program, TimedRecorder(CudaRecorder(capture), clock))
    elif chosen == "device-loop":
        executor = _device_loop(program, capture, may_fall_back=name == "auto")
    else:
        executor = _host_graphs(chosen, program, CudaRecorder(capture))
    seconds = (warm - started, time.perf_counter() - warm)
    logger.info("%s: warm-up %.1f s, capture %.1f s", executor.name, *seconds)
    if capture.allocations:
        logger.warning("ops that allocate while captured: %s", dict(capture.allocations))
    return executor


def _device_loop(program: Block, capture: CaptureStream, *, may_fall_back: bool) -> Executor:
    from rsd_engine.loop.cuda.recorder import CudaRecorder
    from rsd_engine.loop.cuda.runtime import CudaGraphRuntime

    runtime = CudaGraphRuntime(capture)
    try:
        return DeviceLoopExecutor(
            program, runtime, name="device-loop", ticks_per_launch=GRAPH_TICKS
        )
    except GraphRefused as error:
        if not may_fall_back:
            raise
        logger.warning("%s; going on with host-graphs", error)
        return _host_graphs("host-graphs", program, CudaRecorder(capture))


def _host_graphs(name: str, program: Block, recorder: Recorder) -> HostGraphsExecutor:
    return HostGraphsExecutor(program, recorder, name=name, ticks_per_launch=GRAPH_TICKS)


def _has_conditional_nodes() -> bool:
    from rsd_engine.loop.cuda.calls import WHILE_VERSION, cuda_version

    return cuda_version() >= WHILE_VERSION
