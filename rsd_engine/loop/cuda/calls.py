"""The CUDA calls of the graph executors, through `cuda.bindings`, which comes with torch on Linux.

They are calls of the driver and of NVRTC, not of the runtime, so tests need to fake only these.
Import it only where there is a driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cuda.bindings import driver, nvrtc

from rsd_engine.loop.executors.graph_runtime import GraphError

WHILE_VERSION = 12040  # the first CUDA with WHILE and IF nodes
SWITCH_VERSION = 12080  # the first CUDA with SWITCH nodes


def check(result: Any) -> Any:
    """The values that a CUDA call returned; raises GraphError with its error if it failed."""
    status, *values = result if isinstance(result, tuple) else (result,)
    if int(status) != 0:
        raise GraphError(f"CUDA said {getattr(status, 'name', status)}")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def cuda_version() -> int:
    """The CUDA version of the driver: 13000 means 13.0."""
    return int(check(driver.cuDriverGetVersion()))


# The calls with edge data have names of their own in CUDA 12, and the plain names in CUDA 13.
_add_node = getattr(driver, "cuGraphAddNode_v2", driver.cuGraphAddNode)
_capture_info = getattr(driver, "cuStreamGetCaptureInfo_v3", driver.cuStreamGetCaptureInfo)


def add_node(graph: Any, after: Sequence[Any], params: Any) -> Any:
    """Adds a node behind the nodes `after`, and returns it."""
    return check(_add_node(graph, *_edges(after), params))


def begin_capture(stream: int, graph: Any, after: Sequence[Any]) -> None:
    """Captures the stream's work from here on into `graph`, behind the nodes `after`."""
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    check(driver.cuStreamBeginCaptureToGraph(stream, graph, *_edges(after), relaxed))


def _edges(after: Sequence[Any]) -> tuple[list[Any] | None, list[Any] | None, int]:
    """The nodes, the data of the edges from them (plain ones), and their count."""
    if not after:
        return None, None, 0
    return list(after), [driver.CUgraphEdgeData() for _ in after], len(after)


def captured_frontier(stream: int) -> tuple[Any, ...]:
    """The nodes that the next captured one will follow."""
    _, _, _, nodes, _, count = check(_capture_info(stream))
    return tuple(nodes[:count])


def compile_kernel(source: str, name: str, capability: tuple[int, int]) -> tuple[Any, Any]:
    """Compiles CUDA C for this device, without nvcc.

    Returns:
        The loaded module, which must outlive the kernel, and the kernel.
    """
    program = check(nvrtc.nvrtcCreateProgram(source.encode(), name.encode() + b".cu", 0, [], []))
    major, minor = capability
    status, *_ = nvrtc.nvrtcCompileProgram(
        program, 1, [f"--gpu-architecture=sm_{major}{minor}".encode()]
    )
    if int(status) != 0:
        log = b" " * check(nvrtc.nvrtcGetProgramLogSize(program))
        check(nvrtc.nvrtcGetProgramLog(program, log))
        raise GraphError(f"the CUDA kernel {name} does not compile: {log.decode().strip()}")
    binary = b" " * check(nvrtc.nvrtcGetCUBINSize(program))
    check(nvrtc.nvrtcGetCUBIN(program, binary))
    check(nvrtc.nvrtcDestroyProgram(program))
    module = check(driver.cuModuleLoadData(binary))
    return module, check(driver.cuModuleGetFunction(module, name.encode()))
