"""Every executor, and the paper's arrangement, over the same steps.

    python -m bench.device_loop [--preset 1.5b-7b] [--budget 75]
    python -m bench.device_loop --dry-run          # tiny, on a CPU

One engine with random weights; all executors run the same program in alternation. Before anything
is timed they must write the same tokens, give the same rewards and decide alike. Then, for several
shares of rejected steps, which the policy forces while the PRM scores every step:

- Seconds a step without reading the prompts, and launches and ticks a step. A launch is one run of
  the loop. Within it the eager executor launches every kernel, host graphs launch two graphs a
  tick, and the device loop launches nothing.
- The share of time in which the device is idle between ticks of a launch, by its own clock.
- Seconds a step over those of its passes, each replayed alone as a plain graph, and over the
  roofline: the least time in which weights, keys and values can be read.
- Seconds a step of the paper's arrangement and of the device loop, both reading the prompts.
- What a return of the loop costs, and how often it returns, when requests wait for slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch

from bench.lib import report
from bench.lib.play import fill_pages
from bench.lib.random_models import TRIPLES
from bench.lib.report import FailureLog
from bench.loop.baseline import Baseline
from bench.loop.device_loop_bench import Bench
from bench.loop.device_loop_options import parse
from bench.loop.device_loop_report import BASELINE_HEADERS, HEADERS, bar_lines, judge
from bench.loop.returns import RETURN_HEADERS
from rsd_engine import Engine
from rsd_kernels.launch import overlapping


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments, __doc__)
    triple = TRIPLES[options.preset]
    checkpoints = triple.checkpoints(options.device, None, 2 * options.scene.model_len)
    failures = FailureLog()
    with Engine(
        *checkpoints, device=options.device, executor=options.executors[0], step_delimiters=None,
        max_num_seqs=options.max_slots, kv_cache_memory_bytes=options.kv_bytes,
        max_model_len=max(options.scene.model_len, options.gate.model_len),
        enable_prefix_caching=False,
    ) as engine, closing(Bench(options, engine)) as bench:  # fmt: skip
        bench.pass_gate()
        baseline = Baseline(checkpoints, triple.num_tokens)
        bench.pass_baseline_gate(baseline)
        fill_pages(engine)
        bench.start_clock()
        failures.run_each(
            [
                ("executors", bench.run_executors),
                ("passes alone", bench.time_passes),
                ("baseline", lambda: bench.run_baseline(baseline)),
            ]
        )
        # What the bars need is printed now, in case the run is stopped or the device is lost.
        report.print_json(_summary(bench, failures))
        failures.run_each(
            [
                ("returns", bench.count_returns),
                ("batch", bench.run_batch),
                ("again", lambda: bench.run_again(baseline)),
            ]
        )
    report.print_json_or_fail(_summary(bench, failures))
    return 0


def _summary(bench: Bench, failures: FailureLog) -> dict[str, Any]:
    """Prints the tables of everything measured so far; returns it for the line of JSON."""
    points = [point for point in bench.points if point.runs]
    judged = judge(points, bench.judged)
    print(report.format_table(HEADERS, [row for point in points for row in point.rows()]))
    rows = [row for point in points if (row := point.baseline_row()) is not None]
    print(report.format_table(BASELINE_HEADERS, rows))
    print(report.format_table(RETURN_HEADERS, [returned.row() for returned in bench.returns]))
    print("\n".join(bar_lines(judged)))
    for label, count in bench.budget.skipped.items():
        print(f"no time: {label}, {count} times")
    return {
        "bench": "device_loop",
        "preset": bench.options.preset,
        "judged": bench.judged,
        "starts_early": overlapping(1),
        "scene": vars(bench.options.scene),
        "measured": {"bandwidth": bench.rates.bandwidth, "flops": bench.rates.flops},
        "driver": report.driver(),
        "cuda": torch.version.cuda,
        "bars": judged,
        "shares": [point.to_dict() for point in points],
        "returns": [returned.to_dict() for returned in bench.returns],
        "skipped": dict(bench.budget.skipped),
        "failed": failures.messages,
    }
