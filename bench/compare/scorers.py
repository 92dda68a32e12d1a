"""Which scorer is worth its cost: a reward model, the target as judge, confidence, probes.

    python -m bench.scorers --problems 500

Solves held-out problems of the demo family greedily with each. A scorer's threshold is the one that
best separates right steps from wrong ones on other problems; probes are trained on others again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.compare.effect import KEEP_ALL, Models, answers, figures, greedy_trials
from bench.compare.step_auc import JudgedSteps
from bench.lib import report
from bench.lib.options import command_parser, positive
from examples.train_probe import train
from rsd_engine import Confidence, Engine, Probe, TargetJudge
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import Problem, generate
from rsd_engine.evaluate.record import Record
from rsd_engine.evaluate.summary import Row, summarise


@dataclass(frozen=True)
class Found:
    """What one scorer does.

    Attributes:
        row: of the test problems, with its threshold.
        threshold: chosen on other problems.
        auc: of its scores of the draft's steps of the test problems; None if all steps are alike.
    """

    row: Row
    threshold: float
    auc: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    models = Models(*(checkpoint_dir(role) for role in ("draft", "target", "prm")))
    test = generate(options.seed, "test", options.problems)
    tuning = generate(options.seed, "valid", options.tuning)
    alone = _alone(models, test, options.slots)
    target = [record for record in alone if record.method == "target"]
    with tempfile.TemporaryDirectory() as folder:
        probes = _train_probes(models, Path(folder), options)
        scorers = _scorers(models, probes)
        found = {
            name: _measure(models, scorer, tuning, test, target, options.slots)
            for name, scorer in scorers.items()
        }
    rows = {row.method: row for row in summarise(alone)}
    print(_table(rows, found))
    report.print_json(
        {
            "bench": "scorers",
            "problems": options.problems,
            "alone": {name: figures(row) for name, row in rows.items()},
            "scorers": {
                name: figures(f.row) | {"threshold": f.threshold, "auc": f.auc}
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


def _alone(models: Models, test: Sequence[Problem], slots: int) -> list[Record]:
    found = []
    for trial in greedy_trials(["draft", "target"]):
        with Engine(
            **{trial.method: getattr(models, trial.method)},
            max_num_seqs=slots,
            enable_prefix_caching=False,
        ) as engine:
            found += answers(engine, [trial], test)
    return found


def _measure(
    models: Models,
    scorer: dict[str, Any],
    tuning: Sequence[Problem],
    test: Sequence[Problem],
    target: Sequence[Record],
    slots: int,
) -> Found:
    with Engine(
        models.draft, models.target, max_num_seqs=slots, enable_prefix_caching=False, **scorer
    ) as engine:
        threshold = _judge(engine, tuning).best_threshold()
        auc = _judge(engine, test).auc()
        records = answers(engine, greedy_trials(["rsd"], [threshold]), test)
    return Found(summarise([*target, *records])[-1], threshold, auc)


def _judge(engine: Engine, problems: Sequence[Problem]) -> JudgedSteps:
    """The scores of the draft's steps, all kept, beside the checker's verdicts."""
    judged = JudgedSteps()
    judged.add(problems, answers(engine, greedy_trials([KEEP_ALL]), problems))
    return judged


def _table(alone: Mapping[str, Row], found: Mapping[str, Found]) -> str:
    headers = ("", "accuracy %", "kept steps %", "AUC", "threshold", "seconds", "fewer FLOPs, "
               "written", "fewer FLOPs, read")  # fmt: skip
    rows = [_cells(f"{name} alone", row, "", "") for name, row in alone.items()]
    for name, f in found.items():
        auc = "-" if f.auc is None else f"{f.auc:.4f}"
        rows.append(_cells(name, f.row, auc, f"{f.threshold:.3g}"))
    return report.format_table(headers, rows)


def _cells(name: str, row: Row, auc: str, threshold: str) -> list[str]:
    fewer = [f"{ratio:.2f}" for ratio in row.fewer_flops or ()]
    kept = "" if row.acceptance is None else f"{100 * row.acceptance:.1f}"
    return [
        name, f"{100 * row.accuracy:.1f}", kept, auc, threshold, f"{row.seconds:.1f}", *fewer,
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
