"""Which scorer is worth its cost: a reward model, the target as judge, confidence, probes.

    python -m bench.scorers --problems 500

Solves held-out problems of the demo family greedily with each. A scorer's threshold is the one that
best separates right steps from wrong ones on other problems; probes are trained on others again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.compare.effect import MAX_TOKENS, Models, Run, flops_ratio, run_problems
from bench.compare.step_auc import JudgedSteps
from bench.lib import report
from bench.lib.options import command_parser, positive
from examples.train_probe import train
from rsd_engine import Confidence, Constant, Engine, Probe, SamplingParams, TargetJudge, Threshold
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import Problem, generate


@dataclass(frozen=True)
class Found:
    """What one scorer does.

    Attributes:
        run: the test problems, with its threshold.
        threshold: chosen on other problems.
        auc: of its scores of the draft's steps of the test problems; None if all steps are alike.
    """

    run: Run
    threshold: float
    auc: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    models = Models(*(checkpoint_dir(role) for role in ("draft", "target", "prm")))
    test = generate(options.seed, "test", options.problems)
    tuning = generate(options.seed, "valid", options.tuning)
    alone = _alone(models, test, options.slots)
    with tempfile.TemporaryDirectory() as folder:
        probes = _train_probes(models, Path(folder), options)
        scorers = _scorers(models, probes)
        found = {
            name: _measure(name, models, scorer, tuning, test, options.slots)
            for name, scorer in scorers.items()
        }
    print(_table(alone, found))
    report.print_json(
        {
            "bench": "scorers",
            "problems": options.problems,
            "alone": {name: _figures(run, alone["target"]) for name, run in alone.items()},
            "scorers": {
                name: _figures(f.run, alone["target"]) | {"threshold": f.threshold, "auc": f.auc}
                for name, f in found.items()
            },
        }
    )
    return 0


def _scorers(models: Models, probes: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Arguments of the engine, by name."""
    return {
        "reward model": {"prm": models.prm},
        "target as judge": {"scorer": TargetJudge()},
        "confidence: log-probability": {"scorer": Confidence("logprob")},
        "confidence: entropy": {"scorer": Confidence("entropy")},
        "probe on the target": {"scorer": Probe(probes["target"], role="target")},
        "probe on the draft": {"scorer": Probe(probes["draft"], role="draft")},
    }


def _train_probes(models: Models, folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    problems = generate(options.seed, "train", options.training)
    files = {role: folder / f"{role}.safetensors" for role in ("target", "draft")}
    for role, file in files.items():
        train(getattr(models, role), problems, file)
    return files


def _alone(models: Models, test: Sequence[Problem], slots: int) -> dict[str, Run]:
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    runs = {}
    for name in ("draft", "target"):
        with Engine(
            **{name: getattr(models, name)}, max_num_seqs=slots, enable_prefix_caching=False
        ) as engine:
            run_problems(engine, "warm-up", test[: 2 * slots], params)
            runs[name] = run_problems(engine, name, test, params)
    return runs


def _measure(
    name: str,
    models: Models,
    scorer: dict[str, Any],
    tuning: Sequence[Problem],
    test: Sequence[Problem],
    slots: int,
) -> Found:
    with Engine(
        models.draft, models.target, max_num_seqs=slots, enable_prefix_caching=False, **scorer
    ) as engine:
        threshold = _judge(engine, tuning).best_threshold()
        auc = _judge(engine, test).auc()
        params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, policy=Threshold(threshold))
        return Found(run_problems(engine, name, test, params), threshold, auc)


def _judge(engine: Engine, problems: Sequence[Problem]) -> JudgedSteps:
    """The scores of the draft's steps, all kept, beside the checker's verdicts."""
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, policy=Constant(1.0))
    judged = JudgedSteps()
    judged.add(problems, run_problems(engine, "judged", problems, params).completions)
    return judged


def _figures(run: Run, target: Run) -> dict[str, Any]:
    return {
        "accuracy": run.accuracy,
        "seconds": run.seconds,
        "acceptance": run.metrics.acceptance_rate,
        "flops_ratio": flops_ratio(run, target),
    }


def _table(alone: dict[str, Run], found: dict[str, Found]) -> str:
    headers = ("", "accuracy %", "kept steps %", "AUC", "threshold", "seconds", "fewer FLOPs, "
               "written", "fewer FLOPs, read")  # fmt: skip
    rows = [_row(f"{name} alone", run, alone["target"], "", "") for name, run in alone.items()]
    for name, f in found.items():
        auc = "-" if f.auc is None else f"{f.auc:.4f}"
        rows.append(_row(name, f.run, alone["target"], auc, f"{f.threshold:.3g}"))
    return report.format_table(headers, rows)


def _row(name: str, run: Run, target: Run, auc: str, threshold: str) -> list[str]:
    ratio, kept = flops_ratio(run, target), run.metrics.acceptance_rate
    return [
        name, f"{100 * run.accuracy:.1f}", "" if kept is None else f"{100 * kept:.1f}", auc,
        threshold, f"{run.seconds:.1f}", f"{ratio['generated']:.2f}", f"{ratio['all']:.2f}",
    ]  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("scorers", __doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems")
    parser.add_argument("--problems", type=positive, default=500)
    parser.add_argument("--tuning", type=positive, default=200, help="problems for the thresholds")
    parser.add_argument("--training", type=positive, default=400, help="problems for the probes")
    parser.add_argument("--slots", type=positive, default=16, help="problems solved at once")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    return parser
