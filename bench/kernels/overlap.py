"""Does the device loop work with kernels that start early, and is it then faster?

    python -m bench.overlap                # on a GPU, sm_90 or later
    python -m bench.overlap --dry-run      # the same on a CPU, with tiny models

How such launches (programmatic dependent launch) behave inside the body of a conditional node is
not documented. So the loop is captured with them, and must give the same tokens, rewards and
decisions as the eager executor without them. Then device loops with and without them run the same
steps in alternation. A loop that cannot be captured or launched is a finding: `works` is false in
the result. Different tokens are an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.kernels.early_launch import starting_early
from bench.lib import report
from bench.lib.options import command_parser, default_device
from bench.lib.play import fill_pages, play
from bench.lib.random_models import TRIPLES, RandomTriple
from bench.lib.scenes import Scene
from bench.lib.timing import Mismatch, Timing
from bench.loop.runs import check_steps, run_scene, using
from rsd_engine import Engine
from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.executors.factory import make_executor
from rsd_engine.loop.executors.graph_runtime import GraphError
from rsd_engine.loop.rsd import build_program
from rsd_engine.roofline.presets import PRESETS
from rsd_kernels.launch import can_overlap


@dataclass(frozen=True)
class Options:
    """What is measured: `real` on a GPU, `tiny` on a CPU."""

    triple: RandomTriple
    device: torch.device
    executor: str
    gate: Scene
    scene: Scene
    kv_bytes: int | None
    runs: int

    @classmethod
    def tiny(cls) -> Options:
        return cls(
            TRIPLES["tiny"], torch.device("cpu"), "simulated-loop",
            gate=Scene("rsd", 0.5, 2, context=12, step_tokens=4, steps=3),
            scene=Scene("rsd", 1.0, 1, context=24, step_tokens=4, steps=2),
            kv_bytes=None, runs=2,
        )  # fmt: skip

    @classmethod
    def real(cls) -> Options:
        """Small models."""
        draft, target = PRESETS["qwen2.5-0.5b"], PRESETS["qwen2.5-1.5b"]
        return cls(
            replace(TRIPLES["1.5b-7b"], draft=draft, target=target),
            default_device(), "device-loop",
            gate=Scene("rsd", 0.5, 2, context=24, step_tokens=8, steps=4),
            scene=Scene("rsd", 1.0, 1, context=512, step_tokens=20, steps=4),
            kv_bytes=2 * 2**30, runs=7,
        )  # fmt: skip

    @property
    def model_len(self) -> int:
        return max(self.gate.model_len, self.scene.model_len)


def trial(options: Options) -> dict[str, Any]:
    """The gate, then the timings.

    Raises:
        GraphError: the loop cannot be captured or launched with kernels that start early.
        Mismatch: with them it decides otherwise than without.
    """
    with starting_early(True):
        engine = Engine(
            *options.triple.checkpoints(options.device, None, 2 * options.model_len),
            device=options.device, executor=options.executor, step_delimiters=None,
            max_num_seqs=options.gate.slots, kv_cache_memory_bytes=options.kv_bytes,
            max_model_len=options.model_len, enable_prefix_caching=False,
        )  # fmt: skip
    with engine, starting_early(False):
        loop = engine.parts.core.loop
        with closing(make_executor("eager", build_program(loop), options.device)) as eager:
            require_same_decisions(engine, eager, options.gate)
        again = make_executor(options.executor, build_program(loop), options.device)
        with closing(again) as plain:
            fill_pages(engine)
            return _timed(engine, {"plain": plain, "early": engine.parts.core.executor}, options)


def require_same_decisions(engine: Engine, plain: Executor, gate: Scene) -> None:
    """The engine's own executor must decide as the plain one does, twice.

    Raises:
        Mismatch: it does not.
    """
    with using(engine.parts.core, plain):
        wanted = play(engine, gate, real_prompts=True)
    check_steps(wanted, gate)
    for turn in ("first", "second"):
        played = play(engine, gate, real_prompts=True)
        if (played.decisions, played.rewards) != (wanted.decisions, wanted.rewards):
            raise Mismatch(f"with kernels that start early the {turn} run decides otherwise")
    print(f"gate passed: {engine.parts.core.executor.name} with early kernels decides as "
          f"{plain.name} without, twice")  # fmt: skip


def _timed(engine: Engine, executors: dict[str, Executor], options: Options) -> dict[str, Any]:
    """Seconds a step of every executor; they alternate."""
    taken: dict[str, list[float]] = {name: [] for name in executors}
    for turn in range(options.runs + 1):
        for name, executor in executors.items():
            run, _ = run_scene(engine, executor, options.scene)
            if turn:  # the first is a warm-up
                taken[name].append(run.seconds)
    timings = {name: Timing(tuple(seconds)) for name, seconds in taken.items()}
    return {
        "seconds_a_step": {name: timing.median for name, timing in timings.items()},
        "spread": {name: timing.spread for name, timing in timings.items()},
        "times_faster": timings["plain"].median / timings["early"].median,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("overlap", __doc__)
    parser.add_argument("--dry-run", action="store_true", help="run tiny models on a CPU")
    dry_run = parser.parse_args(arguments).dry_run
    if not dry_run and not can_overlap():
        parser.error("no CUDA device of sm_90 or later; --dry-run runs the same code on a CPU")
    found: dict[str, Any] = {"works": True, "why": None}
    try:
        found |= trial(Options.tiny() if dry_run else Options.real())
    except (GraphError, Mismatch) as error:
        found = {"works": False, "why": f"{type(error).__name__}: {error}"}
    for name, seconds in found.get("seconds_a_step", {}).items():
        print(f"{name}: {1e3 * seconds:.3f} ms a step")
    if found["why"]:
        print(found["why"])
    report.print_json({"bench": "overlap", "starts_early": can_overlap(), **found})
    return 1 if str(found["why"]).startswith("Mismatch") else 0
