"""The parts of `bench.gpu`, the most important first."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

# More workers do not make the tests faster: they all wait for one GPU.
_TEST_JOBS = 16


@dataclass(frozen=True)
class Part:
    """One child process, whose result is the last line of JSON that it prints.

    Attributes:
        module: run with `python -m`.
        arguments, dry_arguments: on a GPU, and on a CPU in tiny sizes.
        limit: seconds after which it is stopped.
        least: seconds without which it is not started, since it would be stopped before its end.
        brief: whether its result goes into the summary instead of a file.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    dry_arguments: tuple[str, ...]
    limit: float
    least: float = 15
    brief: bool = False

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.module) is None

    def command(self, dry_run: bool) -> list[str]:
        return ["-m", self.module, *(self.dry_arguments if dry_run else self.arguments)]


def build_parts(dry_run: bool) -> tuple[Part, ...]:
    """Versions and compilers, which run side by side since they need no GPU."""
    jobs = str(max(1, (os.cpu_count() or 1) - 1))
    doctor = Part("doctor", "rsd_engine.doctor", (), (), limit=90)
    triton = Part("triton", "bench.gpu.cache", ("--jobs", jobs), ("--dry-run",), limit=150)
    if dry_run:
        return (doctor, triton) if importlib.util.find_spec("triton") else (doctor,)
    # This writes the library into the package, so a dry run leaves it out.
    return doctor, triton, Part("cuda", "rsd_kernels.cuda.build", (), (), limit=150)


def parts() -> tuple[Part, ...]:
    """All parts, in the order in which they run."""
    return (
        Part(
            "tests",
            "bench.gpu_tests",
            ("--jobs", str(_TEST_JOBS), "--limit", "180"),
            ("tests/kernels/test_torch_loop_ops.py",),
            limit=200,
        ),
        Part("kernels", "bench.kernels", (), ("--dry-run",), limit=150, least=60),
        Part("control", "bench.control", ("--conditional",), ("--dry-run",), limit=90, least=40),
        Part("verify", "bench.verify", (), ("--dry-run",), limit=40, least=30, brief=True),
        Part(
            "device_loop",
            "bench.device_loop",
            ("--budget", "65"),
            ("--dry-run",),
            limit=160,
            least=120,
        ),
        Part("batching", "bench.batching", ("--budget", "40"), ("--dry-run",), limit=85, least=75),
        Part(
            "step_latency",
            "bench.step_latency",
            ("--budget", "100"),
            ("--dry-run",),
            limit=140,
            least=140,
        ),
        Part(
            "memory",
            "bench.memory",
            ("--preset", "1.5b-7b"),
            ("--preset", "tiny", "--device", "cpu"),
            limit=60,
            least=40,
        ),
        # This may leave the device in a bad state, so it comes after all measurements.
        Part("overlap", "bench.overlap", (), ("--dry-run",), limit=45, brief=True),
        Part("sanitize", "bench.sanitize", (), ("--dry-run",), limit=90, brief=True),
    )


def chosen(names: Sequence[str] | None) -> tuple[Part, ...]:
    """The named parts, or all, in the order in which they run."""
    return tuple(part for part in parts() if names is None or part.name in names)
