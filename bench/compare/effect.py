"""What RSD is for: the accuracy of the target with a fraction of its arithmetic.

    python -m bench.effect --problems 500

Solves held-out problems of the demo family greedily: with the draft alone, with the target alone,
and with RSD. Every answer is checked exactly.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.compare.step_auc import JudgedSteps
from bench.lib import report
from bench.lib.options import command_parser, positive
from rsd_engine import (
    CompletionOutput,
    Constant,
    Engine,
    Metrics,
    RequestOutput,
    SamplingParams,
    Threshold,
)
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import Problem, check_answer, generate

MAIN_THRESHOLD = 0.7
MAX_TOKENS = 256


@dataclass(frozen=True)
class Models:
    """Folders of the three checkpoints."""

    draft: Path
    target: Path
    prm: Path


@dataclass(frozen=True)
class Run:
    """All problems, solved in one way.

    Attributes:
        accuracy: share of right answers.
        metrics: of all requests together.
    """

    name: str
    accuracy: float
    seconds: float
    metrics: Metrics
    completions: tuple[CompletionOutput, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    models = Models(
        *(
            Path(given) if (given := getattr(options, role)) else checkpoint_dir(role)
            for role in ("draft", "target", "prm")
        )
    )
    thresholds = sorted({MAIN_THRESHOLD, *options.thresholds})
    problems = generate(options.seed, "test", options.problems)
    runs = solve(models, problems, thresholds, options.slots, options.seed)
    judged = judge(models, problems, runs, options.slots, options.seed)
    print(format_runs(runs))
    print()
    print(_format_judged(judged))
    report.print_json(
        summary(runs, judged["all"])
        | {
            "bench": "effect",
            "problems": options.problems,
            "seed": options.seed,
            "slots": options.slots,
        }
    )
    return 0


def solve(
    models: Models, problems: Sequence[Problem], thresholds: Sequence[float], slots: int, seed: int
) -> dict[str, Run]:
    """Runs, by name: draft alone, target alone, then RSD at each threshold."""
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=seed)
    ways = {"draft": replace(greedy, mode="draft"), "target": replace(greedy, mode="target")}
    for threshold in thresholds:
        ways[rsd_name(threshold)] = replace(greedy, mode="rsd", policy=Threshold(threshold))
    with Engine(
        models.draft, models.target, models.prm, max_num_seqs=slots, enable_prefix_caching=False
    ) as engine:
        run_problems(engine, "warm-up", problems[: 2 * slots], ways[rsd_name(thresholds[0])])
        return {name: run_problems(engine, name, problems, params) for name, params in ways.items()}


def rsd_name(threshold: float) -> str:
    return f"rsd {threshold:g}"


def judge(
    models: Models, problems: Sequence[Problem], runs: dict[str, Run], slots: int, seed: int
) -> dict[str, JudgedSteps]:
    """Rewards beside the checker's verdicts: of draft, target, and all steps together.

    To score the solutions of one model, it writes them again as the draft under a policy that keeps
    every step. "all" adds what RSD scored.
    """
    params = SamplingParams(
        temperature=0.0, max_tokens=MAX_TOKENS, seed=seed, mode="rsd", policy=Constant(1.0)
    )
    judged = {name: JudgedSteps() for name in ("draft", "target", "all")}
    for name, writer in (("draft", models.draft), ("target", models.target)):
        with Engine(
            writer, models.target, models.prm, max_num_seqs=slots, enable_prefix_caching=False
        ) as engine:
            completions = run_problems(engine, name, problems, params).completions
        for group in (name, "all"):
            judged[group].add(problems, completions)
    judged["all"].add(problems, runs[rsd_name(MAIN_THRESHOLD)].completions)
    return judged


def summary(runs: dict[str, Run], judged: JudgedSteps) -> dict[str, Any]:
    """The figures for the line of JSON."""
    main_run, target = runs[rsd_name(MAIN_THRESHOLD)], runs["target"]
    shown = {"draft": runs["draft"], "target": target, "rsd": main_run}
    return {
        "accuracy": {name: run.accuracy for name, run in shown.items()},
        "seconds": {name: run.seconds for name, run in shown.items()},
        "flops_ratio": flops_ratio(main_run, target),
        "acceptance": main_run.metrics.acceptance_rate,
        "prm_auc": judged.auc(),
        "prm_steps": {"judged": len(judged), "wrong": judged.num_wrong},
        "thresholds": {
            name.removeprefix("rsd "): {
                "accuracy": run.accuracy,
                "seconds": run.seconds,
                "acceptance": run.metrics.acceptance_rate,
                "flops_ratio": flops_ratio(run, target),
            }
            for name, run in runs.items()
            if name not in ("draft", "target")
        },
    }


def flops_ratio(run: Run, target: Run) -> dict[str, float]:
    """How many times fewer operations than the target alone, by generated and by all tokens."""
    ours, theirs = run.metrics.flops, target.metrics.flops
    return {"generated": theirs.generated / ours.generated, "all": theirs.all / ours.all}


def format_runs(runs: dict[str, Run]) -> str:
    """The table for people."""
    headers = ("", "accuracy %", "seconds", "draft tok", "discarded", "target tok", "PRM rows",
               "kept steps %", "GFLOP gen", "ratio", "GFLOP all", "ratio")  # fmt: skip
    rows = []
    for run in runs.values():
        m, ratio = run.metrics, flops_ratio(run, runs["target"])
        kept = m.acceptance_rate
        rows.append(
            [run.name, f"{100 * run.accuracy:.1f}", f"{run.seconds:.1f}",
             str(m.draft.tokens_generated), str(m.draft.tokens_discarded),
             str(m.target.tokens_generated), str(m.prm.tokens_read),
             "" if kept is None else f"{100 * kept:.1f}",
             f"{m.flops.generated / 1e9:.1f}", f"{ratio['generated']:.2f}",
             f"{m.flops.all / 1e9:.1f}", f"{ratio['all']:.2f}"]
        )  # fmt: skip
    return report.format_table(headers, rows)


def _format_judged(judged: dict[str, JudgedSteps]) -> str:
    rows = []
    for name, steps in judged.items():
        found = steps.auc()
        rows.append(
            [name, str(len(steps)), str(steps.num_wrong), "-" if found is None else f"{found:.4f}"]
        )
    return report.format_table(("PRM on steps of", "judged", "wrong", "AUC"), rows)


def run_problems(
    engine: Engine, name: str, problems: Sequence[Problem], params: SamplingParams
) -> Run:
    """Solves the problems and checks every answer."""
    chats = [[{"role": "user", "content": p.question}] for p in problems]
    start = time.perf_counter()
    results: list[RequestOutput] = engine.chat(chats, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    completions = tuple(result.outputs[0] for result in results)
    right = sum(check_answer(p, c.text) for p, c in zip(problems, completions, strict=True))
    metrics = sum((result.metrics for result in results), start=Metrics())
    return Run(name, right / len(problems), seconds, metrics, completions)


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("effect", __doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems")
    parser.add_argument("--problems", type=positive, default=500)
    parser.add_argument(
        "--thresholds", type=float, nargs="*", default=[],
        help=f"thresholds besides {MAIN_THRESHOLD}",
    )  # fmt: skip
    parser.add_argument("--slots", type=positive, default=16, help="problems solved at once")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    for role in ("draft", "target", "prm"):
        parser.add_argument(f"--{role}", help="checkpoint folder (default: the demo family)")
    return parser
