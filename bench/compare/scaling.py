"""How cost grows with the number of steps, slots, context and length of an answer.

    python -m bench.scaling --output scaling.svg

Small models of the demo family write answers of exactly as many steps and tokens as asked for:
every step is kept, the draft is a copy that cannot write end-of-text, no delimiter ends a step, and
a step ends by its length. The text does not matter here, only how much is read for it. The baseline
is the paper's arrangement on transformers (`bench.compare.paper.arrangement`), whose reward model
reads question and answer from the start for every score.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from bench.compare.scaling_curves import draw, fits, slopes_of, verdict
from bench.compare.scaling_work import BASELINE, OURS, Cost, Work, Writers, endless_draft
from bench.lib import report
from bench.lib.options import command_parser
from rsd_engine.demo.problems import generate

STEPS = tuple(range(5, 61, 5))
SLOTS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (64, 128, 256, 512, 768)
STEP_LENGTHS = (4, 8, 16, 32, 64, 128)
_DEGREES = {"steps": 2}  # of the curve through the seconds of a series, if it is not a line


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        writers = Writers(endless_draft(Path(folder)), max(SLOTS))
    works = series(lambda count: question_of(writers.tokenizer, count))
    result: dict[str, Any] = {"bench": "scaling", "runs": options.runs, "model": "demo family"}
    for name, points in works.items():
        costs = {value: writers.costs(work, options.runs) for value, work in points.items()}
        print(report.format_table(_headers(name), [_row(v, points[v], costs[v]) for v in costs]))
        result[name] = _figures(points, costs)
        slopes = slopes_of(result[name], _DEGREES.get(name, 1))
        print(
            f"ms by {name}: " + "; ".join(f"{who} {curve}" for who, curve in slopes.items()) + "\n"
        )
        result[name]["milliseconds"] = {who: vars(curve) for who, curve in slopes.items()}
    found = fits(result["steps"])
    print(verdict(found))
    result["fits"] = {name: vars(curve) for name, curve in found.items()}
    if options.output:
        draw(result["steps"], options.output)
    report.print_json(result)
    return 0


def series(question: Callable[[int], str]) -> dict[str, dict[int, Work]]:
    """The work of every series, by what is varied and by its value.

    Args:
        question: makes a question of about this many tokens.
    """
    short = question(CONTEXTS[0])
    return {
        "steps": {k: Work((short,), k, 8) for k in STEPS},
        "slots": {n: Work((short,) * n, 4, 8) for n in SLOTS},
        "context": {n: Work((question(n),), 4, 8) for n in CONTEXTS},
        "answer length": {4 * n: Work((short,), 4, n) for n in STEP_LENGTHS},
    }


def question_of(tokenizer: Any, num_tokens: int) -> str:
    """The texts of several problems, cut to this many tokens."""
    text = " ".join(problem.question for problem in generate(0, "test", 16))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids[:num_tokens]))


def _headers(name: str) -> tuple[str, ...]:
    return (name, "PRM tokens, ours", "baseline", "seconds, ours", "spread", "baseline", "spread",
            "ms a token, ours", "baseline", "ratio")  # fmt: skip


def _row(value: int, work: Work, costs: dict[str, Cost]) -> list[str]:
    mine, base = costs[OURS], costs[BASELINE]
    each = [1000 * cost.seconds.median / work.num_tokens for cost in (mine, base)]
    return [
        str(value), str(mine.prm_tokens), str(base.prm_tokens),
        f"{mine.seconds.median:.3f}", f"{mine.seconds.spread:.0%}",
        f"{base.seconds.median:.3f}", f"{base.seconds.spread:.0%}",
        f"{each[0]:.2f}", f"{each[1]:.2f}", f"{each[1] / each[0]:.2f}",
    ]  # fmt: skip


def _figures(points: dict[int, Work], costs: dict[int, dict[str, Cost]]) -> dict[str, Any]:
    names = (OURS, BASELINE)
    return {
        "values": list(points),
        "tokens": [work.num_tokens for work in points.values()],
        "prm_tokens": {name: [cost[name].prm_tokens for cost in costs.values()] for name in names},
        "seconds": {name: [cost[name].seconds.median for cost in costs.values()] for name in names},
        "spread": {name: [cost[name].seconds.spread for cost in costs.values()] for name in names},
    }


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("scaling", __doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--output",
        type=Path,
        help="draw tokens read and seconds by number of steps (needs matplotlib)",
    )
    return parser
