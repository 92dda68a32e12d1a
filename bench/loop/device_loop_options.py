"""The command line of `bench.device_loop`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.lib.options import NO_GPU, command_parser, default_device
from bench.lib.random_models import TRIPLES
from bench.lib.scenes import Scene


@dataclass(frozen=True)
class Options:
    """What is measured: `real` on a GPU, `tiny` on a CPU.

    Attributes:
        executors: the first one is judged by the bars.
        scene: one slot; timed at every share of rejected steps.
        gate: what all executors must play alike before anything is timed.
        batch: number of slots of one more point.
        returns: numbers of slots at which returns of the loop are counted.
        returning: the scene of these.
        budget: seconds for everything after the gates.
    """

    preset: str
    device: torch.device
    executors: tuple[str, ...]
    scene: Scene
    gate: Scene
    batch: int
    returns: tuple[int, ...]
    returning: Scene
    kv_bytes: int | None
    runs: int
    budget: float

    @classmethod
    def tiny(cls, budget: float) -> Options:
        return cls(
            preset="tiny", device=torch.device("cpu"), executors=("simulated-loop", "eager"),
            scene=Scene("rsd", 1.0, 1, context=24, step_tokens=4, steps=5),
            gate=Scene("rsd", 0.5, 2, context=12, step_tokens=4, steps=3),
            batch=2, returns=(1, 2), returning=Scene("rsd", 0.8, 1, 8, 4, 1),
            kv_bytes=None, runs=1, budget=budget,
        )  # fmt: skip

    @classmethod
    def real(cls, preset: str, runs: int, budget: float) -> Options:
        return cls(
            preset=preset, device=default_device(),
            executors=("device-loop", "host-graphs", "eager"),
            scene=Scene("rsd", 1.0, 1, context=512, step_tokens=20, steps=10),
            gate=Scene("rsd", 0.5, 2, context=24, step_tokens=8, steps=4),
            batch=16, returns=(1, 16, 64), returning=Scene("rsd", 0.8, 1, 64, 12, 2),
            kv_bytes=4 * 2**30, runs=runs, budget=budget,
        )  # fmt: skip

    @property
    def max_slots(self) -> int:
        return max(self.batch, self.gate.slots, *self.returns)


def parse(arguments: Sequence[str] | None, description: str | None) -> Options:
    """Reads a command line."""
    parser = command_parser("device_loop", description)
    parser.add_argument("--preset", choices=[name for name in TRIPLES if name != "tiny"],
                        default="1.5b-7b")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="run tiny models on a CPU")
    parser.add_argument("--runs", type=int, default=3, help="runs of everything, if there is time")
    parser.add_argument("--budget", type=float, default=float("inf"),
                        help="seconds, counted from the passing of the gates")  # fmt: skip
    given = parser.parse_args(arguments)
    if given.dry_run:
        return Options.tiny(given.budget)
    if not torch.cuda.is_available():
        parser.error(NO_GPU)
    return Options.real(given.preset, given.runs, given.budget)
