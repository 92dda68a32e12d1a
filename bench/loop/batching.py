"""Three rules for the order of passes, over the same steps: which one is fastest?

    python -m bench.batching [--preset 1.5b-7b] [--budget 30]
    python -m bench.batching --dry-run          # tiny, on a CPU

- Most ready: the next pass is of the role for which most slots wait.
- Every role: the roles take turns, one pass each.
- Lock-step, as in the paper's code: all slots draft, then all are scored, then all rejected steps
  are rewritten.

One engine with random weights and one program for each rule, run in alternation. Steps differ in
length by up to a half between slots, as real ones do: with equal steps no slot would ever wait for
another in lock-step. Before anything is timed, all rules must give the same tokens, rewards and
decisions (`bench.loop.batching_gate`).

Then, without reading prompts, for several numbers of slots and shares of rejected steps, which the
policy forces: kept tokens per second until the end of the scene, and until the first slot is done
("all busy", as if more requests were waiting); passes per kept step; rows per pass. With one slot
there is nothing to choose, and all differences are noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.lib import report
from bench.lib.options import command_parser, default_device
from bench.lib.play import fill_pages, play
from bench.lib.random_models import TRIPLES
from bench.lib.scenes import Scene, scene_of
from bench.loop.batching_gate import BEST, TIES, require_same_steps
from bench.loop.batching_report import (
    BUSY,
    HEADERS,
    WHOLE,
    RulePoint,
    RuleRun,
    best_of,
    name_of,
    overall,
)
from bench.loop.runs import TimeBudget, check_steps, run_scene, using
from rsd_engine import Engine
from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.executors.factory import make_executor
from rsd_engine.loop.rsd import build_program
from rsd_kernels.schedule.rules import BatchingRule

SLOTS = (16, 64, 4, 1)  # the most important first
REJECTED = (0.2, 0.4, 0.1)


@dataclass(frozen=True)
class Options:
    """What is measured: `real` on a GPU or a CPU, `tiny` on a CPU.

    Attributes:
        scene: one slot; timed at every number of slots and share of rejected steps.
        gate: what all rules must play alike before anything is timed.
        budget: seconds for everything after the gate.
    """

    preset: str
    device: torch.device
    executor: str
    scene: Scene
    gate: Scene
    slots: tuple[int, ...]
    rejected: tuple[float, ...]
    kv_bytes: int
    runs: int
    budget: float

    @classmethod
    def tiny(cls, budget: float) -> Options:
        return cls(
            preset="tiny", device=torch.device("cpu"), executor="eager",
            scene=Scene("rsd", 1.0, 1, context=12, step_tokens=4, steps=5, uneven=True),
            gate=Scene("rsd", 0.5, 3, 6, step_tokens=4, steps=3, uneven=True, logprobs=BEST),
            slots=(3, 1), rejected=(0.2, 0.4), kv_bytes=2**24, runs=1, budget=budget,
        )  # fmt: skip

    @classmethod
    def real(cls, preset: str, runs: int, budget: float) -> Options:
        on_gpu = torch.cuda.is_available()
        return cls(
            preset=preset,
            device=default_device(),
            executor="device-loop" if on_gpu else "eager",
            scene=Scene(
                "rsd", 1.0, 1, context=512 if on_gpu else 64, step_tokens=12, steps=10, uneven=True
            ),
            gate=Scene("rsd", 0.5, 8, 24, step_tokens=8, steps=4, uneven=True, logprobs=BEST),
            slots=SLOTS, rejected=REJECTED, kv_bytes=8 * 2**30 if on_gpu else 2**28,
            runs=runs, budget=budget,
        )  # fmt: skip


class Bench:
    """One engine, an executor for every rule, and what was measured with them."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self.options = options
        self.engine = engine
        self.executors = make_executors(engine, options)
        self.points = {
            (slots, rejected): RulePoint(scene_of(replace(options.scene, slots=slots), rejected))
            for rejected in options.rejected
            for slots in options.slots
        }
        self.budget = TimeBudget(options.budget)

    def pass_gate(self) -> None:
        """All rules must give the same tokens, rewards and decisions, from real prompts.

        Raises:
            Mismatch: they do not.
        """
        played = {}
        for rule, executor in self.executors.items():
            with using(self.engine.parts.core, executor):
                played[name_of(rule)] = play(self.engine, self.options.gate, real_prompts=True)
            check_steps(played[name_of(rule)], self.options.gate)
        dtype = self.engine.parts.models.main.model.dtype
        ties = require_same_steps(played, TIES[dtype])
        slots = self.options.gate.slots * (len(played) - 1)
        print(
            f"gate passed: {', '.join(played)} write, score and decide the same steps; {ties} of "
            f"{slots} slots diverge at a tie within the rounding of {dtype}"
        )

    def measure(self) -> None:
        """Measures every point once, then again while there is time."""
        self.budget = TimeBudget(self.options.budget)
        for _ in range(self.options.runs):
            for (slots, rejected), point in self.points.items():
                label = f"{slots} slots, {rejected:.0%} rejected"
                for rule, run in (self.budget.run(label, partial(self._run, point)) or {}).items():
                    point.runs.setdefault(rule, []).append(run)

    def _run(self, point: RulePoint) -> dict[BatchingRule, RuleRun]:
        """All rules in turn, so that a point has equally many runs of each."""
        found = {}
        for rule, executor in self.executors.items():
            run, played = run_scene(self.engine, executor, point.scene)
            found[rule] = RuleRun.of(point.scene, run, played)
        return found


def make_executors(engine: Engine, options: Options) -> dict[BatchingRule, Executor]:
    """One executor for each rule, of the same loop; the engine has built its own."""
    core = engine.parts.core
    others = [rule for rule in BatchingRule if rule != core.loop.rule]
    made = {
        rule: make_executor(
            options.executor, build_program(replace(core.loop, rule=rule)), options.device
        )
        for rule in others
    }
    return {core.loop.rule: core.executor, **made}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    checkpoints = TRIPLES[options.preset].checkpoints(
        options.device, None, 2 * options.scene.model_len
    )
    with Engine(
        *checkpoints, device=options.device, executor=options.executor, step_delimiters=None,
        max_num_seqs=max(*options.slots, options.gate.slots),
        kv_cache_memory_bytes=options.kv_bytes,
        max_model_len=max(options.scene.model_len, options.gate.model_len),
        enable_prefix_caching=False,
    ) as engine:  # fmt: skip
        bench = Bench(options, engine)
        try:
            bench.pass_gate()
            fill_pages(engine)
            bench.measure()
        finally:
            for rule, executor in bench.executors.items():
                if rule != engine.parts.core.loop.rule:  # that one is the engine's own
                    executor.close()
    _print_results(bench)
    return 0


def _print_results(bench: Bench) -> None:
    measured = [bench.points[key] for key in sorted(bench.points) if bench.points[key].runs]
    print(report.format_table(HEADERS, [row for point in measured for row in point.rows()]))
    means = {part: overall(measured, part) for part in (WHOLE, BUSY)}
    for part, by_rule in means.items():
        listed = ", ".join(f"{name} {mean:.3f}" for name, mean in by_rule.items())
        print(f"{part}, mean of {len(measured)} points: {listed} times the seconds of most-ready")
    for label, count in bench.budget.skipped.items():
        print(f"no time: {label}, {count} times")
    report.print_json(
        {
            "bench": "batching",
            "preset": bench.options.preset,
            "executor": bench.options.executor,
            "scene": vars(bench.options.scene),
            "points": [point.to_dict() for point in measured],
            "times_most_ready": means,
            "best": {part: best_of(by_rule) for part, by_rule in means.items()},
            "skipped": dict(bench.budget.skipped),
        }
    )


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = command_parser("batching", __doc__)
    default = "1.5b-7b" if torch.cuda.is_available() else "tiny"
    parser.add_argument("--preset", choices=list(TRIPLES), default=default)
    parser.add_argument(
        "--dry-run", action="store_true", help="run tiny models and scenes on a CPU"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of everything, if there is time")
    parser.add_argument("--budget", type=float, default=float("inf"),
                        help="seconds, counted from the passing of the gate")  # fmt: skip
    given = parser.parse_args(arguments)
    if given.dry_run:
        return Options.tiny(given.budget)
    return Options.real(given.preset, given.runs, given.budget)
