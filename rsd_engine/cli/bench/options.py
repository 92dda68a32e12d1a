"""The options of `rsd bench serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from rsd_engine.cli import options as o

DEFAULT_URL = "http://127.0.0.1:8000/v1"


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return o.option(panel, help, *names, show_default=False, **more)


def _server(help: str, *names: str, **more: Any) -> Any:
    return _option("Server", help, *names, **more)


def _load(help: str, *names: str, **more: Any) -> Any:
    return _option("Load", help, *names, **more)


def _output(help: str, *names: str, **more: Any) -> Any:
    return _option("Output", help, *names, **more)


@dataclass(frozen=True)
class BenchServeOptions:
    """What is asked of which server, and how much at a time."""

    base_url: Annotated[
        str,
        _server(
            f"Address of the server (default: {DEFAULT_URL}). OPENAI_API_KEY may have its key.",
            "--base-url",
        ),
    ] = DEFAULT_URL
    model: Annotated[
        str | None,
        _server("What the server calls the model (default: its first one)", "--model"),
    ] = None
    endpoint: Annotated[
        Literal["chat", "completions"],
        _server("chat or completions (default: chat)", "--endpoint"),
    ] = "chat"
    timeout: Annotated[
        float,
        _server("Seconds of silence that fail a request (default: 600)", "--timeout", min=0.001),
    ] = 600.0
    dataset: Annotated[
        Path | None,
        _load(
            'JSONL file of questions: "question" or "prompt" in each line (default: problems of '
            "the demo)",
            "--dataset",
        ),
    ] = None
    num_prompts: Annotated[
        int,
        _load(
            "Requests of a run; a shorter dataset is repeated (default: 100)",
            "--num-prompts",
            min=1,
            max=o.MAX_COUNT,
        ),
    ] = 100
    max_tokens: Annotated[
        int, _load("Most tokens of an answer (default: 256)", "--max-tokens", min=1)
    ] = 256
    extra_body: Annotated[
        str | None,
        _load(
            'More fields of every request, as JSON: {"temperature": 0, "rsd": {"threshold": 0.8}}',
            "--extra-body",
        ),
    ] = None
    request_rate: Annotated[
        str,
        _load(
            "Requests a second, at random times (Poisson); several, separated by commas, are run "
            "one after the other (default: inf, all at once)",
            "--request-rate",
        ),
    ] = "inf"
    max_concurrency: Annotated[
        str | None,
        _load(
            "Most requests at once, likewise one or several (default: no limit)",
            "--max-concurrency",
        ),
    ] = None
    num_warmups: Annotated[
        int, _load("Requests before a run that do not count (default: 0)", "--num-warmups", min=0)
    ] = 0
    seed: Annotated[
        int, _load("Of the times and the demo's problems (default: 0)", "--seed", min=0)
    ] = 0
    save_result: Annotated[
        Path | None, _output("New JSON file for the numbers of all runs.", "--save-result")
    ] = None
    json: Annotated[bool, _output("Print JSON in place of tables.", "--json")] = False
    verbose: o.Verbose = None
