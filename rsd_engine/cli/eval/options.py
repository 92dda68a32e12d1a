"""The options of `rsd eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rsd_engine.cli import options as o
from rsd_engine.cli.engine_options import EngineOptions
from rsd_engine.cli.options import option

_WHAT = "What is compared"
DEFAULT_METHODS = "draft,target,rsd"


@dataclass(frozen=True)
class AnswerOptions(EngineOptions):
    """How questions are asked, and what an answer may be."""

    chat: o.Chat = None
    system: Annotated[
        str | None,
        option(
            "Input and output",
            "System message of the chat (default: to reason step by step and to put the answer "
            "into a box; none for the demo's questions)",
            "--system",
        ),
    ] = None
    chat_template: o.ChatTemplate = None
    chat_template_kwargs: o.ChatTemplateKwargs = None
    max_tokens: Annotated[
        int | None,
        option(
            "Sampling and limits",
            "Most tokens of an answer (default: 2048, or 256 for the demo's questions)",
            "--max-tokens",
        ),
    ] = None
    max_step_tokens: o.MaxStepTokens = None
    max_steps: o.MaxSteps = None
    temperature: Annotated[
        float,
        option(
            "Sampling and limits", "Of methods that write one answer; 0 is greedy.", "--temperature"
        ),
    ] = 0.0
    output: Annotated[
        Path | None,
        option(
            "Input and output",
            "Folder of the results. If it has some, their run is resumed.",
            "--output",
            "-o",
        ),
    ] = None
    overwrite: o.Overwrite = False


@dataclass(frozen=True)
class EvalOptions(AnswerOptions):
    """The command line; None, or an empty list, stands for an option that was not given."""

    methods: Annotated[
        str,
        option(_WHAT, "Methods, commas between them; --list shows all.", "--methods"),
    ] = DEFAULT_METHODS
    threshold: Annotated[
        str | None,
        option(
            _WHAT,
            "Thresholds that rsd, rsd+guesses and judge are tried at, commas between them "
            "(default: that of the PRM's family or of the scorer)",
            "--threshold",
        ),
    ] = None
    seeds: Annotated[str, option(_WHAT, "Seeds, commas between them.", "--seeds")] = "0"
    questions: Annotated[
        str,
        option(
            _WHAT,
            'JSONL file with "question" and "answer", demo, a data set of --list or a hub id; :N '
            "behind it takes the first N, :M-N those from M to N.",
            "--questions",
        ),
    ] = "demo:100"
    show_list: Annotated[
        bool, option(_WHAT, "Show all methods and data sets, and exit.", "--list")
    ] = False
    pictures: Annotated[
        bool,
        option(
            "Input and output",
            "Draw the results too: PNG and SVG in the folder pictures beside them.",
            "--pictures",
        ),
    ] = False
    several_temperature: Annotated[
        float,
        option(
            "Sampling and limits",
            "Of methods that draw several answers, or several candidates of a step.",
            "--several-temperature",
        ),
    ] = 0.7
    several_top_p: Annotated[
        float, option("Sampling and limits", "The same for top-p.", "--several-top-p")
    ] = 0.8
