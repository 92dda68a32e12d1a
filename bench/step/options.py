"""The command line of `bench.step_latency`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from bench.lib.options import command_parser, positive, share
from bench.lib.random_models import TRIPLES
from bench.lib.scenes import ModeName, Scene
from bench.step.roofline import DRAFT, KEEP, MIXED, REJECT, TARGET
from rsd_engine.loop.executors.factory import EXECUTORS, resolve_executor
from rsd_engine.models.config import DTYPES

GATE_SLOTS = 2
_GATE_CONTEXT = 24
_MODES: dict[str, ModeName] = {DRAFT: "draft", TARGET: "target"}
_ACCEPTANCE = {KEEP: 1.0, REJECT: 0.0}
_NOT_TIMED = ("auto", "simulated-loop", "profile")  # one is for tests, one is slowed by its clocks


@dataclass(frozen=True)
class Options:
    """What is measured; the parser explains each option."""

    preset: str
    device: torch.device
    dtype: str
    executors: tuple[str, ...]
    slots: tuple[int, ...]
    contexts: tuple[int, ...]
    step_tokens: int
    steps: int
    acceptance: float
    runs: int
    budget: float  # seconds

    def scene(self, name: str, slots: int, context: int) -> Scene:
        """The scene of this name at one point."""
        kept = _ACCEPTANCE.get(name, self.acceptance)
        mode = _MODES.get(name, "rsd")
        return Scene(mode, kept, slots, context, self.step_tokens, self.steps)

    @property
    def gate(self) -> Scene:
        """The scene that executors must play alike before they are timed."""
        scene = self.scene(MIXED, GATE_SLOTS, _GATE_CONTEXT)
        return replace(scene, acceptance=0.5, steps=4)


def parse(arguments: Sequence[str] | None, description: str | None) -> Options:
    """Reads a command line; sets the number of threads."""
    given = _parser(description).parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    wanted = "cpu" if given.dry_run else given.device
    device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    is_tiny = given.dry_run or given.preset == "tiny"
    return Options(
        preset="tiny" if given.dry_run else given.preset,
        device=device,
        dtype=given.dtype,
        executors=tuple(given.executors or _executors(device)),
        slots=tuple(given.slots or ((1, 3) if is_tiny else (1, 4, 16, 64))),
        contexts=tuple(given.contexts or ((48,) if is_tiny else (1024, 4096, 16384))),
        step_tokens=given.step_tokens or (6 if is_tiny else 40),
        steps=given.steps or 2,
        acceptance=given.acceptance,
        runs=given.runs or (2 if is_tiny else 3),
        budget=given.budget,
    )


def _executors(device: torch.device) -> list[str]:
    """All executors that run on this device, the eager one first."""
    found = []
    for name in EXECUTORS:
        if name in _NOT_TIMED:
            continue
        try:
            found.append(resolve_executor(name, device))
        except ValueError:
            continue
    return found


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = command_parser("step_latency", description)
    parser.add_argument("--preset", choices=(*TRIPLES, "demo"), default="1.5b-7b")
    parser.add_argument("--dry-run", action="store_true", help="run tiny models on a CPU")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    parser.add_argument("--executors", nargs="+", choices=[e for e in EXECUTORS if e != "auto"])
    parser.add_argument("--slots", type=positive, nargs="+")
    parser.add_argument("--contexts", type=positive, nargs="+", help="tokens before the steps")
    parser.add_argument("--step-tokens", type=positive)
    parser.add_argument("--steps", type=positive, help="steps of every slot in a run")
    parser.add_argument("--acceptance", type=share, default=0.7, help="share of steps kept")
    parser.add_argument("--runs", type=positive)
    parser.add_argument(
        "--budget",
        type=float,
        default=float("inf"),
        help="seconds after which no new point is begun",
    )
    parser.add_argument("--threads", type=positive, help="threads of the CPU")
    return parser
