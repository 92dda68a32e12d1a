"""The parts of `bench.gpu.first` and of `bench.gpu`, the most important first."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.gpu.child import ROOT

PROBE = ROOT / "gpu_probe" / "conditional_nodes"  # by `bench.conditional --build gpu_probe`
MODELS = ("Qwen2.5-1.5B", "Qwen2.5-7B")
# More workers do not make the tests faster: they all wait for one GPU.
_TEST_JOBS = "16"
_EARLY = {"RSD_OVERLAP_KERNELS": "1"}
_OUTPUT = "OUTPUT"  # stands for the folder of the results


@dataclass(frozen=True)
class Part:
    """One process, whose result is the last line of JSON that it prints.

    Attributes:
        module: run as `python -m` does.
        arguments, dry_arguments: on a GPU, and on a CPU in tiny sizes.
        limit: seconds after which it is stopped.
        least: seconds without which it is not started, since it would be stopped before its end.
        may_be_early: whether its kernels start early, once that has been proven to be right.
        variables: of the environment.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    dry_arguments: tuple[str, ...]
    limit: float
    least: float = 5
    may_be_early: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.module) is None

    def command(self, dry_run: bool, output: Path) -> list[str]:
        """Its arguments."""
        arguments = self.dry_arguments if dry_run else self.arguments
        return [str(output.resolve()) if word == _OUTPUT else word for word in arguments]

    def early(self) -> Part:
        """The same with kernels that start early, if it may have them."""
        return replace(self, variables=_EARLY) if self.may_be_early else self


_MACHINE = Part("machine", "bench.gpu.machine", (), ("--dry-run",), limit=25)
_CONDITIONAL = Part(
    "conditional", "bench.conditional", ("--binary", str(PROBE)), ("--dry-run",), limit=20
)
_DECODE = Part(
    "decode",
    "bench.kernels",
    ("--only", "models", "--models", *MODELS, "--runs", "12"),
    ("--only", "models", "--dry-run"),
    limit=40,
)
_CONTROL = Part("control", "bench.control", ("--runs", "15"), ("--dry-run",), limit=35)
# This may hang a device, or leave it in a bad state.
_OVERLAP = Part("overlap", "bench.overlap", (), ("--dry-run",), limit=35)


def first_parts() -> tuple[Part, ...]:
    """First contact with a GPU."""
    return (
        _MACHINE,
        _CONDITIONAL,
        Part("executors", "bench.gpu.executors", (), ("--dry-run",), limit=45),
        _DECODE,
        Part(
            "profile",
            "bench.gpu.launch_profile",
            ("--output", _OUTPUT),
            ("--output", _OUTPUT, "--dry-run"),
            limit=20,
        ),
        Part(
            "counters",
            "bench.gpu.counters",
            ("--output", _OUTPUT),
            ("--output", _OUTPUT, "--dry-run"),
            limit=30,
        ),
        _CONTROL,
        _OVERLAP,
    )


def build_parts(cache_fits: bool, library_loads: bool) -> tuple[Part, ...]:
    """Compilers, for what was not compiled beforehand."""
    triton = Part("triton", "bench.gpu.cache", (), ("--dry-run",), limit=150)
    cuda = Part("cuda", "rsd_kernels.cuda.build", (), (), limit=100)
    return (*(() if cache_fits else (triton,)), *(() if library_loads else (cuda,)))


def second_parts(first: Mapping[str, Mapping[str, Any]]) -> tuple[Part, ...]:
    """Everything else that needs a GPU.

    Args:
        first: what each part of `first_parts` found, by name.
    """
    checks = ("-v", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib",
              "--maxfail=4", "--durations=5", "tests/engine/executors/checks.py")  # fmt: skip
    seen = first.get("overlap", {}).get("result") or {}
    trusted = bool(seen.get("works"))
    return (
        Part("executor_checks", "pytest", checks, (*checks, "--collect-only"), limit=110),
        *((_OVERLAP,) if trusted else ()),
        _DECODE,
        Part(
            "device_loop",
            "bench.device_loop",
            ("--budget", "60"),
            ("--dry-run",),
            limit=130,
            least=60,
            may_be_early=True,
        ),
        _CONTROL,
        Part("verify", "bench.verify", (), ("--dry-run",), limit=40, least=20),
        Part(
            "weight_formats",
            "bench.weight_formats",
            ("--models", *MODELS),
            ("--dry-run",),
            limit=70,
            least=30,
            may_be_early=True,
        ),
        Part(
            "few_bits",
            "bench.gpu.executors",
            ("--few-bits",),
            ("--few-bits", "--dry-run"),
            limit=60,
            least=30,
        ),
        Part(
            "tests",
            "bench.gpu_tests",
            ("tests/kernels", "tests/docs", "tests/bench/lib", "--jobs", _TEST_JOBS,
             "--limit", "110"),
            ("tests/server",),  # which needs none
            limit=120,
            least=40,
        ),
        Part(
            "kernels",
            "bench.kernels",
            ("--only", "ops", "--models", *MODELS),
            ("--only", "ops", "--dry-run"),
            limit=90,
            least=40,
        ),
        Part(
            "batching",
            "bench.batching",
            ("--budget", "40"),
            ("--dry-run",),
            limit=85,
            least=75,
            may_be_early=True,
        ),
        Part(
            "step_latency",
            "bench.step_latency",
            ("--budget", "60"),
            ("--dry-run",),
            limit=100,
            least=90,
            may_be_early=True,
        ),
        Part(
            "memory",
            "bench.memory",
            ("--preset", "1.5b-7b"),
            ("--preset", "tiny", "--device", "cpu"),
            limit=60,
            least=40,
        ),
        _CONDITIONAL,
        *(() if trusted else (_OVERLAP,)),
        Part("sanitize", "bench.sanitize", (), ("--dry-run",), limit=90, least=30),
    )  # fmt: skip


def early_is_proven(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether kernels that start early gave the same decisions, and were faster."""
    found = next((r["result"] for r in results if r["part"] == _OVERLAP.name), None) or {}
    return bool(found.get("works")) and (found.get("times_faster") or 0) > 1
