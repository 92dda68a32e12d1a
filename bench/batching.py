"""The order of passes by three rules, over the same steps: which one is the quickest.

    python -m bench.batching [--preset 1.5b-7b] [--budget 30]
    python -m bench.batching --dry-run          # tiny, on a CPU

Most ready: the role for which most slots wait. Every role: the roles in turn, a pass each.
Lock-step, the arrangement of the paper's code: all slots draft, then all are scored, then all
rejected steps are rewritten. One engine, one set of random weights, a program a rule, run in turn.
The slots' steps differ in length by up to a half, as written steps do: with equal ones no slot
would ever wait for another in lock-step. Before anything is timed the rules must give the same
tokens, rewards and decisions (`bench.batching_gate`). Then, for numbers of slots and shares of
rejected steps that the policy forces, the prompts pretended to be read: kept tokens a second to the
end of the scene, the same until the first slot is done ("all busy", as if requests waited for
slots), passes a kept step, rows a pass. With one slot there is nothing to choose: what the rules
differ by there is noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from bench import report
from bench.batching_gate import BEST, TIES, require_same_steps
from bench.batching_report import BUSY, HEADERS, WHOLE, Point, RuleRun, best_of, name_of, overall
from bench.loop_runs import Turns, check_steps, run_scene, using
from bench.random_models import TRIPLES
from bench.step_scenes import Scene, fill_pages, play, scene_of
from rsd_engine import Engine
from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.executors.factory import make_executor
from rsd_engine.loop.rsd import build_program
from rsd_kernels.schedule.rules import BatchingRule

SLOTS = (16, 64, 4, 1)  # what matters most first
REJECTED = (0.2, 0.4, 0.1)


@dataclass(frozen=True)
class Options:
    """What is run; `Options.tiny` and `Options.real` are the two ways."""

    preset: str
    device: torch.device
    executor: str
    scene: Scene
    gate: Scene
    slots: tuple[int, ...]
    rejected: tuple[float, ...]
    kv_bytes: int
    runs: int
    budget: float  # seconds of measuring

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
            device=torch.device("cuda", torch.cuda.current_device())
            if on_gpu
            else torch.device("cpu"),
            executor="device-loop" if on_gpu else "eager",
            scene=Scene(
                "rsd", 1.0, 1, context=512 if on_gpu else 64, step_tokens=12, steps=10, uneven=True
            ),
            gate=Scene("rsd", 0.5, 8, 24, step_tokens=8, steps=4, uneven=True, logprobs=BEST),
            slots=SLOTS, rejected=REJECTED, kv_bytes=8 * 2**30 if on_gpu else 2**28,
            runs=runs, budget=budget,
        )  # fmt: skip


class Bench:
    """One engine, a program for every rule, and what is measured with them."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self.options = options
        self.engine = engine
        self.executors = make_executors(engine, options)
        self.points = {
            (slots, rejected): Point(scene_of(replace(options.scene, slots=slots), rejected))
            for rejected in options.rejected
            for slots in options.slots
        }
        self.turns = Turns(options.budget)

    def pass_gate(self) -> None:
        """The same tokens, rewards and decisions by every rule, prompts read.

        Raises:
            Mismatch: they are not.
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
            f"{slots} slots part at a tie within the rounding of {dtype}"
        )

    def measure(self) -> None:
        """Every point once, then again as long as there is time."""
        self.turns = Turns(self.options.budget)
        for _ in range(self.options.runs):
            for (slots, rejected), point in self.points.items():
                label = f"{slots} slots, {rejected:.0%} rejected"
                for rule, run in (self.turns.run(label, partial(self._run, point)) or {}).items():
                    point.runs.setdefault(rule, []).append(run)

    def _run(self, point: Point) -> dict[BatchingRule, RuleRun]:
        """All rules in turn: a point has as many runs of one as of another."""
        found = {}
        for rule, executor in self.executors.items():
            run, played = run_scene(self.engine, executor, point.scene)
            found[rule] = RuleRun.of(point.scene, run, played)
        return found


def make_executors(engine: Engine, options: Options) -> dict[BatchingRule, Executor]:
    """One a rule, of the same loop; the engine has built its own."""
    core = engine.parts.core
    others = [rule for rule in BatchingRule if rule != core.loop.rule]
    made = {
        rule: make_executor(
            options.executor, build_program(replace(core.loop, rule=rule)), options.device
        )
        for rule in others
    }
    return {core.loop.rule: core.executor, **made}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    sources = TRIPLES[options.preset].sources(options.device, None, 2 * options.scene.model_len)
    with Engine(
        **sources, device=options.device, executor=options.executor, step_delimiters=None,
        max_num_seqs=max(*options.slots, options.gate.slots),
        kv_cache_memory_bytes=options.kv_bytes,
        max_model_len=max(options.scene.model_len, options.gate.model_len),
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
    _tell(bench)


def _tell(bench: Bench) -> None:
    measured = [bench.points[key] for key in sorted(bench.points) if bench.points[key].runs]
    print(report.format_table(HEADERS, [row for point in measured for row in point.rows()]))
    means = {part: overall(measured, part) for part in (WHOLE, BUSY)}
    for part, by_rule in means.items():
        told = ", ".join(f"{name} {mean:.3f}" for name, mean in by_rule.items())
        print(f"{part}, mean of {len(measured)} points: {told} times the seconds of most-ready")
    for label, count in bench.turns.skipped.items():
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
            "skipped": dict(bench.turns.skipped),
        }
    )


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "1.5b-7b" if torch.cuda.is_available() else "tiny"
    parser.add_argument("--preset", choices=list(TRIPLES), default=default)
    parser.add_argument("--dry-run", action="store_true", help="tiny models and scenes on a CPU")
    parser.add_argument("--runs", type=int, default=5, help="of everything, if there is time")
    parser.add_argument("--budget", type=float, default=float("inf"),
                        help="seconds, from when the gate is passed")  # fmt: skip
    given = parser.parse_args(arguments)
    if given.dry_run:
        return Options.tiny(given.budget)
    return Options.real(given.preset, given.runs, given.budget)


if __name__ == "__main__":
    main()
