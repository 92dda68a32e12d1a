"""What `bench.gpu` runs, most important first."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass

# More workers than this do not make the tests faster: they wait for one GPU.
_TEST_JOBS = 16


@dataclass(frozen=True)
class Part:
    """One child process. Its last line of output that is JSON is its result."""

    name: str
    module: str  # run with `python -m`
    arguments: tuple[str, ...]
    dry_arguments: tuple[str, ...]  # the same in tiny, on a CPU
    limit: float  # seconds
    least: float = 15  # seconds without which it is not begun: it would be stopped before its end
    brief: bool = False  # what it finds stands in the summary, not in a file of its own

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.module) is None

    def command(self, dry_run: bool) -> list[str]:
        return ["-m", self.module, *(self.dry_arguments if dry_run else self.arguments)]


def build_parts(dry_run: bool) -> tuple[Part, ...]:
    """Versions and compilers: side by side, for they need no GPU."""
    jobs = str(max(1, (os.cpu_count() or 1) - 1))
    tiny = ("--capability", "90", "--jobs", "1", "--only", "rollback")
    doctor = Part("doctor", "rsd_engine.doctor", (), (), limit=90)
    triton = Part("triton", "bench.precompile", ("--jobs", jobs), tiny, limit=150)
    if dry_run:
        return (doctor, triton) if importlib.util.find_spec("triton") else (doctor,)
    # It writes the library beside the package, so no dry run does it.
    return doctor, triton, Part("cuda", "rsd_kernels.cuda.build", (), (), limit=150)


def parts() -> tuple[Part, ...]:
    """In the order in which they run."""
    return (
        Part(
            "tests",
            "bench.gpu_tests",
            ("--jobs", str(_TEST_JOBS), "--limit", "180"),
            ("tests/kernels/test_control_ops.py",),
            limit=200,
        ),
        Part("kernels", "bench.kernels", (), ("--dry-run",), limit=150, least=60),
        Part("control", "bench.control", ("--conditional",), ("--dry-run",), limit=90, least=40),
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
        # What it tries may leave a device in a bad state: after all that is measured.
        Part("overlap", "bench.overlap", (), ("--dry-run",), limit=45, brief=True),
        Part("sanitize", "bench.sanitize", (), ("--dry-run",), limit=90, brief=True),
    )


def chosen(names: Sequence[str] | None) -> tuple[Part, ...]:
    """The named parts, in the order of the plan."""
    return tuple(part for part in parts() if names is None or part.name in names)
