"""What a row of a dataset asks, and the columns that its answer adds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rsd_engine.engine.chat.questions import asked, question_seed
from rsd_engine.outputs import Candidate, CompletionOutput, Metrics, RequestOutput, Step
from rsd_engine.sampling_params import TEXT_FORMS, SamplingParams

_NESTED = {"messages", "tools", "params"}
_REJECTED = pa.struct([("text", pa.string()), ("reward", pa.float64())])
_CANDIDATE = pa.struct(
    [
        ("text", pa.string()),
        ("source", pa.string()),
        ("reward", pa.float64()),
        ("score", pa.float64()),
    ]
)
_STEP = pa.struct(
    [
        ("text", pa.string()),
        ("source", pa.string()),
        ("reward", pa.float64()),
        ("rejected", _REJECTED),
        ("candidates", pa.list_(_CANDIDATE)),
    ]
)
_COUNTS = (
    "draft_tokens", "discarded_tokens", "target_tokens", "steps_accepted", "steps_rejected",
    "candidates", "flops",
)  # fmt: skip
ANSWER = pa.schema(
    [
        ("sample", pa.int32()),
        ("seed", pa.int64()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("stop_reason", pa.string()),
        ("steps", pa.list_(_STEP)),
        ("rewards", pa.list_(pa.float64())),
        ("metrics", pa.struct([(name, pa.int64()) for name in _COUNTS])),
        ("error", pa.string()),
    ]
)
"""The columns that an answer adds to its row; those of a failed one are null, but `error`."""

Result = RequestOutput | str
"""Of a row: the engine's result, or why it could not be asked."""


def read_row(
    row: Mapping[str, Any], params: SamplingParams, id_column: str
) -> tuple[dict[str, Any], SamplingParams]:
    """What a row asks, and its parameters over the common ones.

    Its seed comes from the common one and its id, or from what it asks if it has no id: never from
    the rows around it.

    Raises:
        ValueError: the row has no prompt, or a value that is not allowed.
    """
    values = {name: value for name, value in row.items() if value is not None}
    for name in values.keys() & _NESTED:
        values[name] = _nested(name, values[name])
    given = asked(values)
    key = row.get(id_column)
    if key is None:
        key = json.dumps(given, sort_keys=True, default=str)
    seed = question_seed(params.seed or 0, key if isinstance(key, int) else str(key))
    return given, replace(params, **{"seed": seed, **_own_params(values.get("params"))})


def add_answers(rows: pa.Table, results: Sequence[Result]) -> pa.Table:
    """The rows with the columns of their answers; a row with n samples becomes n rows.

    Raises:
        ValueError: the rows have one of these columns already.
    """
    if taken := sorted(set(ANSWER.names) & set(rows.column_names)):
        raise ValueError(f"the rows have columns {taken}, which answers bring; rename them first")
    places, answers = [], []
    for place, result in enumerate(results):
        for answer in _answers(result):
            places.append(place)
            answers.append(answer)
    table = rows.take(pa.array(places, pa.int64()))
    for field in ANSWER:
        values = [answer.get(field.name) for answer in answers]
        table = table.append_column(field, pa.array(values, field.type))
    return table


def _answers(result: Result) -> list[dict[str, Any]]:
    if isinstance(result, str):
        return [{"error": result.encode(errors="backslashreplace").decode()}]
    found = [{"seed": result.seed, **_answer(output)} for output in result.outputs]
    found[0]["metrics"] = _counts(result.metrics)  # of all samples: sums over rows are right
    return found


def _answer(output: CompletionOutput) -> dict[str, Any]:
    return {
        "sample": output.index,
        "text": output.text,
        "finish_reason": output.finish_reason,
        "stop_reason": None if output.stop_reason is None else str(output.stop_reason),
        "steps": [_step(step) for step in output.steps],
        "rewards": [_number(step.reward) for step in output.steps],
        "error": output.error,
    }


def _step(step: Step) -> dict[str, Any]:
    rejected = step.rejected
    return {
        "text": step.text,
        "source": step.source,
        "reward": _number(step.reward),
        "rejected": rejected and {"text": rejected.text, "reward": _number(rejected.reward)},
        "candidates": [_candidate(lost) for lost in step.candidates],
    }


def _candidate(lost: Candidate) -> dict[str, Any]:
    return {
        "text": lost.text,
        "source": lost.source,
        "reward": _number(lost.reward),
        "score": lost.score,
    }


def _counts(metrics: Metrics) -> dict[str, int | None]:
    """The counts of a request that do not depend on the others; guesses do, and FLOPs with them."""
    counts = (
        metrics.draft.tokens_generated, metrics.draft.tokens_discarded,
        metrics.target.tokens_generated, metrics.steps_accepted, metrics.steps_rejected,
        metrics.candidates.made, None if metrics.guesses.made else metrics.flops.generated,
    )  # fmt: skip
    return dict(zip(_COUNTS, counts, strict=True))


def _number(reward: float | None) -> float | None:
    """None for a reward that is not a number, which JSON does not have."""
    return None if reward is None or reward != reward else reward


def _own_params(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ValueError(f"params must be an object, got {given!r}")
    values = dict(given)
    for name, parse in TEXT_FORMS.items():
        if isinstance(values.get(name), str):
            values[name] = parse(values[name])
    SamplingParams.from_dict(values)
    return values


def _nested(name: str, value: Any) -> Any:
    """A nested column's value, or its JSON, without what Arrow filled in.

    All structs of a column have the same fields in Arrow: those that a row left out are null.
    """
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is not JSON: {error}") from None
    if name == "messages" and isinstance(value, list):
        return [_message(item) for item in value]
    return _without_nulls(value)


def _message(value: Any) -> Any:
    """A message; its content may be null beside tool calls."""
    if not isinstance(value, dict):
        return value
    return {"content": value.get("content"), **_without_nulls(value)}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
