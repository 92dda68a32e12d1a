"""One engine with every executor and the paper's arrangement, and all that is measured on it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bench.lib.play import play
from bench.lib.rates import measure_device
from bench.lib.scenes import Scene, scene_of
from bench.lib.timing import Mismatch, seconds_of
from bench.loop.baseline import Baseline
from bench.loop.device_loop_options import Options
from bench.loop.device_loop_report import LoopPoint
from bench.loop.lone_passes import Replayer
from bench.loop.returns import Returns, count_returns
from bench.loop.runs import TimeBudget, check_steps, kept_drafts, run_scene, using
from bench.step.roofline import MIXED, step_roofline, triple_of
from rsd_engine import Engine
from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.executors.factory import make_executor
from rsd_engine.loop.rsd import build_program
from rsd_engine.roofline.rounds import Setting
from rsd_kernels.state.enums import RecordKind, Role

REJECTED = (0.2, 0.0, 0.5, 1.0)  # shares of steps; the usual one first


class Bench:
    """One engine, its executors, and what was measured on it.

    Attributes:
        judged: name of the executor that the bars are about.
        points: one for every share of rejected steps, and one with more slots.
        returns: returns of the loop, by executor and number of slots.
        budget: whether there is time for one more run.
    """

    def __init__(self, options: Options, engine: Engine) -> None:
        self.options = options
        self.engine = engine
        self.executors = make_executors(engine, options)
        self.judged = options.executors[0]
        self.returns: list[Returns] = []
        self.rates = measure_device(
            options.device, engine.parts.models.main.model.dtype, quick=options.preset == "tiny"
        )
        self.points = [self._point(scene_of(options.scene, rejected)) for rejected in REJECTED]
        self.budget = TimeBudget(options.budget)

    def start_clock(self) -> None:
        """Begins the budget; compiling, which comes before, may take longer than all the rest."""
        self.budget = TimeBudget(self.options.budget)

    def close(self) -> None:
        """Closes the executors that are not the engine's own."""
        for name in self.options.executors[1:]:
            self.executors[name].close()

    def pass_gate(self) -> None:
        """All executors must write, score and decide alike, twice, from real prompts.

        Raises:
            Mismatch: they do not.
        """
        found: dict[str, Any] = {}
        for turn in ("first", "second"):
            for name, executor in self.executors.items():
                with using(self.engine.parts.core, executor):
                    played = play(self.engine, self.options.gate, real_prompts=True)
                check_steps(played, self.options.gate)
                expected = found.setdefault("first", (played.decisions, played.rewards))
                if (played.decisions, played.rewards) != expected:
                    raise Mismatch(
                        f"{name} decides otherwise in its {turn} run than {self.judged} at first"
                    )
        print(f"gate passed: {', '.join(self.executors)} decide alike, twice")

    def pass_baseline_gate(self, baseline: Baseline) -> None:
        """In fp32 the paper's arrangement must write exactly the tokens of the engine.

        Raises:
            Mismatch: it does not.
        """
        baseline.play(replace(self.options.gate, slots=1, steps=2), [True, False])  # warm-up
        if self.engine.parts.models.main.model.dtype != torch.float32:
            return
        scene = self.points[0].scene
        played = play(self.engine, scene, real_prompts=True)
        ours = [
            (source, list(tokens))
            for kind, source, tokens in played.decisions[0]
            if kind == RecordKind.KEPT
        ]
        theirs = [
            (Role[source.upper()], ids) for source, ids in baseline.play(scene, kept_drafts(played))
        ]
        if ours != theirs:
            raise Mismatch(f"the paper's arrangement writes {theirs}, ours {ours}")
        print("gate passed: the paper's arrangement writes the same steps")

    def run_executors(self) -> None:
        """Every executor at every point."""
        for point in self.points:
            self._run_executors_at(point)

    def time_passes(self) -> None:
        """Counts the passes of every point's scene, and times each of them alone."""
        replayer = Replayer(self.engine.parts.core.loop)
        for point in self.points:
            self._time_passes_at(point, replayer)
        replayer.close()

    def run_baseline(self, baseline: Baseline) -> None:
        """The paper's arrangement and the judged executor, at every point with one slot."""
        for point in self.points:
            if point.scene.slots == 1:
                self._run_baseline_at(point, baseline)

    def count_returns(self) -> None:
        """Every executor at every number of slots."""
        for slots in self.options.returns:
            scene = replace(self.options.returning, slots=slots)
            for name, executor in self.executors.items():
                label = f"returns, {name}, {slots} slots"
                found = self.budget.run(label, partial(count_returns, self.engine, executor, scene))
                if found is not None:
                    self.returns.append(found)

    def run_batch(self) -> None:
        """One more point, with more slots."""
        scene = scene_of(replace(self.options.scene, slots=self.options.batch), REJECTED[0])
        point = self._point(scene)
        self._run_executors_at(point)
        if point.runs:
            self.points.append(point)

    def run_again(self, baseline: Baseline) -> None:
        """Repeats what there is time for."""
        for _ in range(self.options.runs - 1):
            self.run_executors()
            self.run_baseline(baseline)

    def _run_executors_at(self, point: LoopPoint) -> None:
        for name, executor in self.executors.items():
            label = f"{name}, {point.scene.slots} slots, {point.scene.acceptance}"
            run = self.budget.run(label, partial(run_scene, self.engine, executor, point.scene))
            if run is not None:
                point.add(name, run[0])

    def _time_passes_at(self, point: LoopPoint, replayer: Replayer) -> None:
        counting = replayer.counting_executor(self.executors[self.judged].ticks_per_launch)
        counted = partial(run_scene, self.engine, counting, point.scene)
        run = self.budget.run("count passes", counted)
        if run is not None:
            if self.judged in point.runs and run[0].ticks != point.runs[self.judged][0].ticks:
                raise Mismatch("the counted run has other passes than the one that was timed")
            point.passes = replayer.time(runs=max(2, 2 * self.options.runs + 1))

    def _run_baseline_at(self, point: LoopPoint, baseline: Baseline) -> None:
        """Both read the prompts."""
        scene = point.scene
        label = f"baseline, {scene.acceptance}"
        if not self.budget.fits(label):
            self.budget.skipped[label] += 1
            return
        with using(self.engine.parts.core, self.executors[self.judged]):
            ours = play(self.engine, scene, real_prompts=True)
        check_steps(ours, scene)
        kept = kept_drafts(ours)
        seconds = self.budget.run(label, lambda: seconds_of(lambda: baseline.play(scene, kept)))
        if seconds is not None:
            point.baseline.append(seconds / scene.steps)
            point.ours.append(ours.seconds / scene.steps)

    def _point(self, scene: Scene) -> LoopPoint:
        mean = scene.context + scene.steps * scene.step_tokens // 2
        setting = Setting(self.rates, scene.slots, mean, scene.step_tokens)
        triple = triple_of(self.engine.parts.models.models)
        return LoopPoint(scene, step_roofline(triple, setting, scene.acceptance)[MIXED])


def make_executors(engine: Engine, options: Options) -> dict[str, Executor]:
    """All executors, of one loop; the engine has built the one that is judged."""
    core = engine.parts.core
    others = options.executors[1:]
    made = {name: make_executor(name, build_program(core.loop), options.device) for name in others}
    return {core.executor.name: core.executor, **made}
