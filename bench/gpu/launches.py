"""Every source of launches on a GPU, by name: engines, and cases of benchmarks of kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.gpu import engines, kernel_cases
from rsd_kernels.aot.memoryless import memoryless_cuda
from rsd_kernels.launch import Launch


def _of_cases(run: Callable[[], None]) -> list[Launch]:
    with memoryless_cuda() as work:
        run()
        return work.launches


SOURCES: dict[str, Callable[[], list[Launch]]] = {
    **{name: partial(engines.launches, make) for name, make in engines.ENGINES.items()},
    **{name: partial(_of_cases, run) for name, run in kernel_cases.CASES.items()},
}
