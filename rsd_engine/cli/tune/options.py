"""The options of `rsd tune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rsd_engine.cli import options as o
from rsd_engine.cli.eval.options import AnswerOptions
from rsd_engine.cli.options import option

_WHAT = "What is tuned"


@dataclass(frozen=True)
class TuneOptions(AnswerOptions):
    """The command line; None, or an empty list, stands for an option that was not given."""

    budget: Annotated[
        float,
        option(_WHAT, "Share of the answers' tokens that the target may write.", "--budget"),
    ] = 0.3
    questions: Annotated[
        str,
        option(
            _WHAT,
            "Questions to find the threshold on, as in rsd eval: a JSONL file, demo, a data set or "
            "a hub id; :N behind it takes the first N, :M-N those from M to N.",
            "--questions",
        ),
    ] = "demo:200"
    held_out: Annotated[
        str | None,
        option(_WHAT, "Other questions to try the threshold on.", "--held-out"),
    ] = None
    records: Annotated[
        Path | None,
        option(
            _WHAT,
            "Results of rsd eval with --methods rsd, in place of --questions: nothing is asked.",
            "--records",
        ),
    ] = None
    start: Annotated[
        float | None,
        option(
            _WHAT,
            "Threshold of the first pass (default: that of the PRM's family or of the scorer)",
            "--start",
        ),
    ] = None
    passes: Annotated[
        int,
        option(
            _WHAT,
            "Most passes. Each after the first asks only what another threshold would change.",
            "--passes",
            min=1,
        ),
    ] = 5
    seed: Annotated[
        int, option("Sampling and limits", "Seed of the questions' own.", "--seed", min=0)
    ] = 0
    json: o.Json = None
