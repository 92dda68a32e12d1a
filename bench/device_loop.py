"""Rounds of steps by every executor, and by the paper's arrangement, in one run.

    python -m bench.device_loop [--preset 1.5b-7b] [--budget 75]
    python -m bench.device_loop --dry-run          # tiny, on a CPU

One engine, one set of random weights, all executors in turn over the same program. Before anything
is timed they must give the same tokens, rewards and decisions. Then, for shares of rejected steps
that the policy forces (the reward model scores in earnest):

- seconds a step, the prompts pretended to be read; launches and ticks a step. A launch is one run
  of the loop: inside it the eager executor launches every kernel, host graphs two graphs a tick,
  the device loop nothing.
- the share of time in which the device stood idle between ticks of a launch, by its own clock;
- the same over the sum of its passes, each replayed alone as a plain graph, and over the least
  time that reading weights, keys and values allows;
- seconds a step of the paper's arrangement and of the device loop, prompts read by both;
- what a return of the loop costs, and how often one comes, when requests wait for slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from bench import report
from bench.attempts import Attempts
from bench.device_loop_options import Options, parse
from bench.device_loop_report import (
    BASELINE_HEADERS,
    HEADERS,
    Share,
    bar_lines,
    judge,
)
from bench.lone_passes import Replayer
from bench.loop_runs import (
    RETURN_HEADERS,
    Returns,
    Turns,
    check_steps,
    count_returns,
    kept_drafts,
    run_scene,
    using,
)
from bench.random_baseline import Baseline
from bench.random_models import TRIPLES
from bench.rates import measure_device
from bench.step_points import MIXED, step_limits, triple_of
from bench.step_scenes import Scene, fill_pages, play, scene_of
from bench.timing import Mismatch, seconds_of
from rsd_engine import Engine
from rsd_engine.loop.executors.base import Executor
from rsd_engine.loop.executors.factory import make_executor
from rsd_engine.loop.rsd import build_program
from rsd_engine.roofline.rounds import Setting
from rsd_kernels.launch import overlapping
from rsd_kernels.state.enums import RecordKind, Role

REJECTED = (0.2, 0.0, 0.5, 1.0)  # the usual share first


class Bench:
    """One engine and everything that is measured on it."""

    def __init__(self, options: Options, engine: Engine) -> None:
        self.options = options
        self.engine = engine
        self.executors = make_executors(engine, options)
        self.judged = options.executors[0]
        self.returns: list[Returns] = []
        self.attempts = Attempts()
        self.rates = measure_device(
            options.device, engine.parts.models.main.model.dtype, quick=options.preset == "tiny"
        )
        self.shares = [self._share(scene_of(options.scene, rejected)) for rejected in REJECTED]
        self.turns = Turns(options.budget)

    def start_clock(self) -> None:
        """Once all kernels are compiled, which may take longer than everything else."""
        self.turns = Turns(self.options.budget)

    def pass_gate(self) -> None:
        """The same tokens, rewards and decisions by every executor, prompts read, twice.

        Raises:
            Mismatch: they are not.
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

    def run_executors(self, share: Share) -> None:
        for name, executor in self.executors.items():
            label = f"{name}, {share.scene.slots} slots, {share.scene.acceptance}"
            run = self.turns.run(label, partial(run_scene, self.engine, executor, share.scene))
            if run is not None:
                share.add(name, run[0])

    def time_passes(self, share: Share, replayer: Replayer) -> None:
        """Counts the passes of the scene, and times each of them alone."""
        counting = replayer.counting_executor(self.executors[self.judged].ticks_per_launch)
        run = self.turns.run("count passes", partial(run_scene, self.engine, counting, share.scene))
        if run is not None:
            if self.judged in share.runs and run[0].ticks != share.runs[self.judged][0].ticks:
                raise Mismatch("the counted run has other passes than the one that was timed")
            share.passes = replayer.time(runs=max(2, 2 * self.options.runs + 1))

    def run_baseline(self, share: Share, baseline: Baseline) -> None:
        """The paper's arrangement, then the judged executor; both read their prompts."""
        scene = share.scene
        label = f"baseline, {scene.acceptance}"
        if not self.turns.fits(label):
            self.turns.skipped[label] += 1
            return
        with using(self.engine.parts.core, self.executors[self.judged]):
            ours = play(self.engine, scene, real_prompts=True)
        check_steps(ours, scene)
        kept = kept_drafts(ours)
        seconds = self.turns.run(label, lambda: seconds_of(lambda: baseline.play(scene, kept)))
        if seconds is not None:
            share.baseline.append(seconds / scene.steps)
            share.ours.append(ours.seconds / scene.steps)

    def count_returns(self, slots: int) -> None:
        scene = replace(self.options.returning, slots=slots)
        for name, executor in self.executors.items():
            label = f"returns, {name}, {slots} slots"
            found = self.turns.run(label, partial(count_returns, self.engine, executor, scene))
            if found is not None:
                self.returns.append(found)

    def run_batch(self) -> None:
        scene = scene_of(replace(self.options.scene, slots=self.options.batch), REJECTED[0])
        share = self._share(scene)
        self.run_executors(share)
        if share.runs:
            self.shares.append(share)

    def _share(self, scene: Scene) -> Share:
        mean = scene.context + scene.steps * scene.step_tokens // 2
        setting = Setting(self.rates, scene.slots, mean, scene.step_tokens)
        triple = triple_of(self.engine.parts.models.models)
        return Share(scene, step_limits(triple, setting, scene.acceptance)[MIXED])


def make_executors(engine: Engine, options: Options) -> dict[str, Executor]:
    """All of the same loop; the engine has built the one that is judged."""
    core = engine.parts.core
    others = options.executors[1:]
    made = {name: make_executor(name, build_program(core.loop), options.device) for name in others}
    return {core.executor.name: core.executor, **made}


def require_same_text(bench: Bench, baseline: Baseline) -> None:
    """In fp32 the paper's arrangement writes the very tokens of the engine.

    Raises:
        Mismatch: it does not.
    """
    scene = bench.shares[0].scene
    played = play(bench.engine, scene, real_prompts=True)
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


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments, __doc__)
    sources = TRIPLES[options.preset].sources(options.device, None, 2 * options.scene.model_len)
    with Engine(
        **sources, device=options.device, executor=options.executors[0], step_delimiters=None,
        max_num_seqs=options.max_slots, kv_cache_memory_bytes=options.kv_bytes,
        max_model_len=max(options.scene.model_len, options.gate.model_len),
    ) as engine:  # fmt: skip
        bench = Bench(options, engine)
        try:
            bench.pass_gate()
            baseline = Baseline(sources, TRIPLES[options.preset].num_tokens)
            baseline.play(replace(options.gate, slots=1, steps=2), [True, False])  # warm-up
            if engine.parts.models.main.model.dtype == torch.float32:
                require_same_text(bench, baseline)
            fill_pages(engine)
            bench.start_clock()
            bench.attempts.run_all(
                [
                    ("executors", partial(_run_executors, bench)),
                    ("passes alone", partial(_time_passes, bench)),
                    ("baseline", partial(_run_baseline, bench, baseline)),
                ]
            )
            # What the bars need, in case that this is stopped, or the device is lost.
            report.print_json(_tell(bench))
            bench.attempts.run_all(
                [
                    ("returns", partial(_count_returns, bench)),
                    ("batch", bench.run_batch),
                    ("again", partial(_run_again, bench, baseline)),
                ]
            )
        finally:
            for name in options.executors[1:]:  # the first is the engine's own
                bench.executors[name].close()
    report.print_json_or_fail(_tell(bench))


def _run_executors(bench: Bench) -> None:
    for share in bench.shares:
        bench.run_executors(share)


def _time_passes(bench: Bench) -> None:
    replayer = Replayer(bench.engine.parts.core.loop)
    for share in bench.shares:
        bench.time_passes(share, replayer)
    replayer.close()


def _run_baseline(bench: Bench, baseline: Baseline) -> None:
    for share in bench.shares:
        bench.run_baseline(share, baseline)


def _count_returns(bench: Bench) -> None:
    for slots in bench.options.returns:
        bench.count_returns(slots)


def _run_again(bench: Bench, baseline: Baseline) -> None:
    """Repeats what there is time for."""
    for _ in range(bench.options.runs - 1):
        _run_executors(bench)
        for share in bench.shares:
            if share.scene.slots == 1:
                bench.run_baseline(share, baseline)


def _tell(bench: Bench) -> dict[str, Any]:
    """Everything that was measured so far, in tables; returned for the line of JSON."""
    shares = [share for share in bench.shares if share.runs]
    judged = judge(shares, bench.judged)
    print(report.format_table(HEADERS, [row for share in shares for row in share.rows()]))
    rows = [row for share in shares if (row := share.baseline_row()) is not None]
    print(report.format_table(BASELINE_HEADERS, rows))
    print(report.format_table(RETURN_HEADERS, [returned.row() for returned in bench.returns]))
    print("\n".join(bar_lines(judged)))
    for label, count in bench.turns.skipped.items():
        print(f"no time: {label}, {count} times")
    rates = bench.rates
    return {
        "bench": "device_loop",
        "preset": bench.options.preset,
        "judged": bench.judged,
        "starts_early": overlapping(1),
        "scene": vars(bench.options.scene),
        "measured": {"bandwidth": rates.bandwidth, "flops": rates.flops},
        "driver": report.driver(),
        "cuda": torch.version.cuda,
        "bars": judged,
        "shares": [share.to_dict() for share in shares],
        "returns": [returned.to_dict() for returned in bench.returns],
        "skipped": dict(bench.turns.skipped),
        "failed": bench.attempts.failed,
    }


if __name__ == "__main__":
    main()
