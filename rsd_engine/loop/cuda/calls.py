"""The CUDA calls of the graph executors, through `cuda.bindings`, which comes with torch on Linux.

The driver's calls alone, for then a driver is all that a test has to stand in for. Imported only
where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cuda.bindings import driver, nvrtc

from rsd_engine.loop.executors.graph_runtime import GraphError

SWITCH_VERSION = 12080  # CUDA that knows IF with ELSE and SWITCH
WHILE_VERSION = 12040  # CUDA that knows WHILE and IF


def check(result: Any) -> Any:
    """The values of a call; its error, by name, if it failed."""
    status, *values = result if isinstance(result, tuple) else (result,)
    if int(status) != 0:
        raise GraphError(f"CUDA said {getattr(status, 'name', status)}")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def cuda_version() -> int:
    """What the driver can do, as CUDA numbers it: 13000 for 13.0."""
    return int(check(driver.cuDriverGetVersion()))


# What takes and gives the data of edges has a name of its own in CUDA 12; in CUDA 13 there is
# nothing else.
_add_node = getattr(driver, "cuGraphAddNode_v2", driver.cuGraphAddNode)
_capture_info = getattr(driver, "cuStreamGetCaptureInfo_v3", driver.cuStreamGetCaptureInfo)


def add_node(graph: Any, after: Sequence[Any], params: Any) -> Any:
    """The new node of a graph, which follows the nodes `after`."""
    return check(_add_node(graph, *_edges(after), params))


def begin_capture(stream: int, graph: Any, after: Sequence[Any]) -> None:
    """From here on the stream's work goes into `graph`, behind the nodes `after`."""
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    check(driver.cuStreamBeginCaptureToGraph(stream, graph, *_edges(after), relaxed))


def _edges(after: Sequence[Any]) -> tuple[list[Any] | None, list[Any] | None, int]:
    """Nodes, the data of the edges from them (whole kernels are waited for), their number."""
    if not after:
        return None, None, 0
    return list(after), [driver.CUgraphEdgeData() for _ in after], len(after)


def captured_frontier(stream: int) -> tuple[Any, ...]:
    """The nodes that the next one follows which this stream captures."""
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
        raise GraphError(f"{name} does not compile: {log.decode().strip()}")
    binary = b" " * check(nvrtc.nvrtcGetCUBINSize(program))
    check(nvrtc.nvrtcGetCUBIN(program, binary))
    check(nvrtc.nvrtcDestroyProgram(program))
    module = check(driver.cuModuleLoadData(binary))
    return module, check(driver.cuModuleGetFunction(module, name.encode()))
