"""What RSD is for: the accuracy of the target with a fraction of its arithmetic.

    python -m bench.effect --problems 500

Solves held-out problems of the demo family greedily: with the draft alone, with the target alone,
and with RSD. Every answer is checked exactly. It asks and counts as `rsd eval` does, but all
problems in one batch, and also says how well the PRM tells right steps from wrong ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.compare.step_auc import JudgedSteps
from bench.lib import report
from bench.lib.options import command_parser, positive
from rsd_engine import Engine, SamplingParams
from rsd_engine.cli.eval.show import print_rows
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import Problem, generate
from rsd_engine.engine.chat.questions import ChatSettings
from rsd_engine.evaluate.methods import Decoding, Trial, make_trials
from rsd_engine.evaluate.questions import demo_questions
from rsd_engine.evaluate.record import Record, label
from rsd_engine.evaluate.run import Examiner, make_items
from rsd_engine.evaluate.summary import Row, summarise

MAIN_THRESHOLD = 0.7
MAX_TOKENS = 256
KEEP_ALL = "rsd:constant:1"  # to score every step that a model writes as the draft
_WARM_UP = 32  # problems


@dataclass(frozen=True)
class Models:
    """Folders of the three checkpoints."""

    draft: Path
    target: Path
    prm: Path


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
    records = solve(models, problems, thresholds, options.slots)
    judged = judge(models, problems, records, options.slots)
    rows = summarise(records)
    print_rows(rows)
    print(_format_judged(judged))
    report.print_json(
        summary(rows, judged["all"])
        | {
            "bench": "effect",
            "problems": options.problems,
            "seed": options.seed,
            "slots": options.slots,
        }
    )
    return 0


def greedy_trials(
    methods: Sequence[str], thresholds: Sequence[float] = (MAIN_THRESHOLD,)
) -> list[Trial]:
    """Methods as `rsd eval` names them, all greedy."""
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    return make_trials(methods, thresholds, Decoding(params, params))


def answers(engine: Engine, trials: Sequence[Trial], problems: Sequence[Problem]) -> list[Record]:
    """The answers to all problems, by one trial after the other, each after a warm-up."""
    questions = demo_questions(problems)
    examiner = Examiner(engine, ChatSettings(), questions)
    found = []
    for trial in trials:
        batch = tuple(make_items(trial, 0, questions))
        examiner.warm_up(batch[:_WARM_UP])
        found += examiner.answer(batch, lambda record, metrics: None)
    return found


def solve(
    models: Models, problems: Sequence[Problem], thresholds: Sequence[float], slots: int
) -> list[Record]:
    """Answers by the draft alone, the target alone, then RSD at each threshold."""
    trials = greedy_trials(["draft", "target", "rsd"], thresholds)
    with Engine(
        models.draft, models.target, models.prm, max_num_seqs=slots, enable_prefix_caching=False
    ) as engine:
        return answers(engine, trials, problems)


def judge(
    models: Models, problems: Sequence[Problem], records: Sequence[Record], slots: int
) -> dict[str, JudgedSteps]:
    """Rewards beside the checker's verdicts: of draft, target, and all steps together.

    To score the solutions of one model, it writes them again as the draft under a policy that keeps
    every step. "all" adds what RSD scored at the main threshold.
    """
    trials = greedy_trials([KEEP_ALL])
    judged = {name: JudgedSteps() for name in ("draft", "target", "all")}
    for name, writer in (("draft", models.draft), ("target", models.target)):
        with Engine(
            writer, models.target, models.prm, max_num_seqs=slots, enable_prefix_caching=False
        ) as engine:
            kept = answers(engine, trials, problems)
        for group in (name, "all"):
            judged[group].add(problems, kept)
    main_label = label("rsd", {"threshold": MAIN_THRESHOLD})
    judged["all"].add(problems, [one for one in records if one.label == main_label])
    return judged


def summary(rows: Sequence[Row], judged: JudgedSteps) -> dict[str, Any]:
    """The figures for the line of JSON."""
    named = {row.method: row for row in rows}
    swept = {f"{row.settings['threshold']:g}": row for row in rows if row.method == "rsd"}
    main_row = swept[f"{MAIN_THRESHOLD:g}"]
    shown = {"draft": named["draft"], "target": named["target"], "rsd": main_row}
    return {
        "accuracy": {name: row.accuracy for name, row in shown.items()},
        "seconds": {name: row.seconds for name, row in shown.items()},
        "flops_ratio": flops_ratio(main_row),
        "acceptance": main_row.acceptance,
        "prm_auc": judged.auc(),
        "prm_steps": {"judged": len(judged), "wrong": judged.num_wrong},
        "thresholds": {name: figures(row) for name, row in swept.items()},
    }


def figures(row: Row) -> dict[str, Any]:
    """Of one row, for JSON."""
    return {
        "accuracy": row.accuracy,
        "seconds": row.seconds,
        "acceptance": row.acceptance,
        "flops_ratio": flops_ratio(row),
    }


def flops_ratio(row: Row) -> dict[str, float] | None:
    """How many times fewer operations than the target alone, by generated and by all tokens."""
    if row.fewer_flops is None:
        return None
    generated, read = row.fewer_flops
    return {"generated": generated, "all": read}


def _format_judged(judged: dict[str, JudgedSteps]) -> str:
    rows = []
    for name, steps in judged.items():
        found = steps.auc()
        rows.append(
            [name, str(len(steps)), str(steps.num_wrong), "-" if found is None else f"{found:.4f}"]
        )
    return report.format_table(("PRM on steps of", "judged", "wrong", "AUC"), rows)


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
