"""The CUDA calls of the graph executors, through `cuda.bindings`, which comes with torch on Linux.

Imported only where there is a GPU.
"""

from __future__ import annotations

from typing import Any

from cuda.bindings import driver, nvrtc, runtime

from rsd_engine.loop.graph_runtime import GraphError

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
    """What driver and runtime both can do, as CUDA numbers it: 13000 for 13.0."""
    return min(check(runtime.cudaDriverGetVersion()), check(runtime.cudaRuntimeGetVersion()))


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
