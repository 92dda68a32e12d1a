"""`rsd trace`: makes the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rsd_engine.cli import options as o
from rsd_engine.cli.errors import UsageError, clean_errors, print_stderr
from rsd_engine.cli.values import html_file

HELP = (
    "Write a page of HTML that shows answers step by step, to read or to share.\n\n"
    "RESULTS is what `rsd eval` or `rsd generate --output` wrote, a file or eval's folder; with "
    "OTHER, two runs on the same questions stand side by side. The page is one file and loads "
    "nothing from anywhere."
)

Results = Annotated[
    Path, typer.Argument(help="JSONL file of results, or its folder.", show_default=False)
]
Other = Annotated[
    Path | None, typer.Argument(help="Another run on the same questions.", show_default=False)
]
OutputPage = Annotated[
    Path, typer.Option("--output", "-o", help="File to write, .html; replaced if it exists.")
]
Questions = Annotated[
    Path | None,
    typer.Option("--input", "-i", help="What `rsd generate` had as --input: its questions."),
]


def trace(
    results: Results,
    other: Other = None,
    output: OutputPage = Path("trace.html"),
    questions: Questions = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "RSD trace",
    verbose: o.Verbose = None,
) -> None:
    """See HELP."""
    with clean_errors(verbose=bool(verbose)):
        html_file("--output", output)
        from rsd_engine.cli.trace.read import read_runs
        from rsd_engine.evaluate.trace.formulas import can_parse
        from rsd_engine.evaluate.trace.page import check_runs, make_page

        runs = read_runs([results] if other is None else [results, other], questions)
        try:
            check_runs(runs)
        except ValueError as error:
            raise UsageError(str(error)) from None
        page = make_page(runs, title)
        output.write_text(page.html, encoding="utf-8")
        if page.unparsed and not can_parse():
            print_stderr(
                f"{page.unparsed} formulas stay LaTeX; to see mathematics: "
                'pip install "rsd-engine[eval]"'
            )
        answers = sum(len(run.records) for run in runs)
        print_stderr(f"{answers} answers in {output} ({len(page.html) / 1e6:.1f} MB)")
