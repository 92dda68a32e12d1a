"""Turns a result of the engine into the JSON that `rsd generate` writes.

It has only what the request and its seed decide, so that a run that was stopped and resumed writes
the same file as one that was not: no times, and rewards rounded to four decimals, because the order
in which a matrix product sums depends on the requests that share a pass. Nor does it tell of
guesses: how many a pass of the target has room for depends on these requests, too.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rsd_engine.cli.results.result_line import ResultsKind
from rsd_engine.outputs import Metrics, RequestOutput

GENERATED = ResultsKind("rsd generate")

_DECIMALS = 4
_SCORE_DECIMALS = 2  # of GSI, which sums the log-probabilities of a step's tokens


def result_record(result: RequestOutput) -> dict[str, Any]:
    """Seed, outputs and counts of one request; `error` if a sample failed."""
    values = result.to_dict()
    outputs = values["outputs"]
    for output in outputs:
        for key in ("cumulative_logprob", "logprobs", "error"):
            if output[key] is None:
                del output[key]
        for step in output["steps"]:
            _make_lasting(step)
    record: dict[str, Any] = {"seed": result.seed, "outputs": outputs}
    if values["prompt_logprobs"] is not None:
        record["prompt_logprobs"] = values["prompt_logprobs"]
    record["metrics"] = _counts(result.metrics)
    errors = [output.error for output in result.outputs if output.error]
    return {"error": errors[0], **record} if errors else record


def _counts(metrics: Metrics) -> dict[str, Any]:
    """The counts of a request that do not depend on the other requests."""
    counts: dict[str, Any] = {
        "draft_tokens": metrics.draft.tokens_generated,
        "discarded_tokens": metrics.draft.tokens_discarded,
        "target_tokens": metrics.target.tokens_generated,
        "steps_accepted": metrics.steps_accepted,
        "steps_rejected": metrics.steps_rejected,
    }
    if metrics.candidates.made:
        counts["candidates"] = asdict(metrics.candidates)
    return counts if metrics.guesses.made else {**counts, "flops": metrics.flops.generated}


def _make_lasting(step: dict[str, Any]) -> None:
    """Leaves out what another run would not repeat, and what is empty in most runs."""
    del step["guessed"]
    _round(step)
    if step["rejected"] is not None:
        _round(step["rejected"])
    for candidate in step["candidates"]:
        _round(candidate)
        if candidate["score"] is None:
            del candidate["score"]
        else:
            candidate["score"] = round(candidate["score"], _SCORE_DECIMALS)
    if not step["candidates"]:
        del step["candidates"]


def _round(step: dict[str, Any]) -> None:
    if step["reward"] is not None:
        step["reward"] = round(step["reward"], _DECIMALS)
