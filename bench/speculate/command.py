"""Token-level speculation on the demo family: the target alone, RSD, and transformers.

    python -m bench.speculate

At each batch size the target writes alone without guesses, with guesses of the draft and with those
of n-grams; and RSD without guesses, and with each kind of them in its rewrites. All ways of a mode
must write the same tokens, which is checked first. So must transformers' assisted generation, which
takes one problem at a time: the same checkpoints, draft as assistant. Then all of a batch size run
in alternation, greedily and in fp32.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from bench.compare.effect import Models
from bench.lib import report
from bench.lib.options import command_parser, positive
from bench.speculate.contenders import ASSISTED, NONE, PICKED, PLAIN
from bench.speculate.measure import Found, measure
from rsd_engine.demo import checkpoint_dir
from rsd_engine.demo.problems import generate

HEADERS = ("batch", "mode", "guesses", "seconds", "min", "max", "CPU s", "times as fast",
           "tokens a pass", "guesses right")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    models = Models(
        *(
            Path(given) if (given := getattr(options, role)) else checkpoint_dir(role)
            for role in ("draft", "target", "prm")
        )
    )
    questions = [p.question for p in generate(options.seed, "test", options.problems)]
    found: dict[int, list[Found]] = {}
    for batch in options.batch:
        found[batch] = measure(models, questions, batch, options.tokens, options.runs)
        print(report.format_table(HEADERS, rows_of(batch, found[batch])), flush=True)
    report.print_json(
        summary(found) | {"bench": "speculate", "problems": options.problems, "runs": options.runs}
    )
    return 0


def rows_of(batch: int, found: Sequence[Found]) -> list[list[str]]:
    """One row a contender, under HEADERS."""
    return [
        [
            str(batch), f.mode, f.guesses, f"{f.timing.median:.3f}", f"{min(f.timing.seconds):.3f}",
            f"{max(f.timing.seconds):.3f}", f"{f.cpu_seconds:.3f}", f"{f.ratio:.2f}",
            "" if f.tokens_a_pass is None else f"{f.tokens_a_pass:.2f}",
            "" if f.acceptance is None else f"{f.acceptance:.0%}",
        ]
        for f in found
    ]  # fmt: skip


def summary(found: Mapping[int, Sequence[Found]]) -> dict[str, Any]:
    """By batch: the way of guessing that an engine picks by itself, and every way.

    `ratio` is the speed against the same mode without guesses; in `assisted` it is that of the
    target with the draft's guesses, against transformers' assisted generation.
    """
    result: dict[str, Any] = {"target": {}, "rsd": {}, "assisted": {}}
    for batch, ways in found.items():
        by_name = {(f.mode, f.guesses): f for f in ways}
        for mode, picked in PICKED.items():
            chosen = by_name[mode, picked]
            result[mode][f"batch{batch}"] = {
                "ratio": chosen.ratio,
                "tokens_a_pass": chosen.tokens_a_pass,
                "ways": {f.guesses: f.figures() for f in ways if f.mode == mode},
            }
        rsd, target = by_name["rsd", NONE], by_name["target", NONE]
        result["rsd"][f"batch{batch}"]["vs_target"] = rsd.times_as_fast_as(target)
        if ("transformers", ASSISTED) in by_name:
            assisted, plain = (by_name["transformers", name] for name in (ASSISTED, PLAIN))
            ours = by_name["target", PICKED["target"]]
            result["assisted"][f"batch{batch}"] = {
                "ratio": ours.times_as_fast_as(assisted),
                "vs_plain": assisted.times_as_fast_as(plain),
                "seconds": list(assisted.timing.seconds),
                "cpu_seconds": assisted.cpu_seconds,
            }
    return result


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("speculate", __doc__)
    parser.add_argument("--runs", type=positive, default=5)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--problems", type=positive, default=16)
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=positive, default=256, help="most tokens of an answer")
    parser.add_argument("--seed", type=int, default=0, help="seed of the problems")
    for role in ("draft", "target", "prm"):
        parser.add_argument(f"--{role}", help="checkpoint folder (default: the demo family)")
    return parser
