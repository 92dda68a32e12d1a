"""What a run found, a row for each method and setting."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rsd_engine.evaluate.record import Counts, Record, RoleSeconds
from rsd_engine.evaluate.statistics import mcnemar, wilson_interval


@dataclass(frozen=True)
class Row:
    """One method with one setting, over all questions and seeds.

    Attributes:
        accuracy: share of right answers.
        low, high: 95 % confidence interval of it, by Wilson. It counts questions, not answers: more
            seeds do not make it narrower.
        p_value: of McNemar's exact test against the target alone, by question; with several seeds a
            question counts for the one that is right more often. None without the target.
        counts: sums over all answers.
        acceptance: share of the draft's steps that were kept; None if none was decided on.
        seconds: that all answers took.
        role_seconds: of them, what each model took; None if a record does not tell.
        fewer_flops: how many times fewer than the target alone, for tokens written and for all that
            were read; None without the target.
        speed_up: how many times faster than the target alone, likewise.
        draft_alone: share of the questions that were answered rightly without a token of the
            target.
        failed: answers that an error ended.
    """

    method: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    questions: int
    accuracy: float
    low: float
    high: float
    p_value: float | None
    counts: Counts
    acceptance: float | None
    seconds: float
    role_seconds: RoleSeconds | None
    fewer_flops: tuple[float, float] | None
    speed_up: float | None
    draft_alone: float
    failed: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


def summarise(records: Iterable[Record]) -> list[Row]:
    """A row for each method and setting, in the order of the records."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        key = (record.method, json.dumps(dict(record.settings), sort_keys=True))
        groups.setdefault(key, []).append(record)
    target = next((found for (method, _), found in groups.items() if method == "target"), None)
    return [_row(found, target) for found in groups.values()]


def _row(records: Sequence[Record], target: Sequence[Record] | None) -> Row:
    shares = _shares(records)
    right = sum(record.correct for record in records)
    low, high = wilson_interval(round(sum(shares.values())), len(shares))
    counts = sum((record.counts for record in records), start=Counts())
    scored = counts.steps_accepted + counts.steps_rejected
    alone = sum(record.correct and not record.counts.target_tokens for record in records)
    seconds = sum(record.seconds for record in records)
    has_target = target is not None and target is not records
    return Row(
        method=records[0].method,
        settings=records[0].settings,
        seeds=tuple(dict.fromkeys(record.seed for record in records)),
        questions=len(shares),
        accuracy=right / len(records),
        low=low,
        high=high,
        p_value=_p_value(shares, _shares(target)) if has_target and target else None,
        counts=counts,
        acceptance=counts.steps_accepted / scored if scored else None,
        seconds=seconds,
        role_seconds=_role_seconds(records),
        fewer_flops=None if target is None else _fewer(target, records),
        speed_up=None if target is None else _ratio(_mean_seconds(target), _mean_seconds(records)),
        draft_alone=alone / len(records),
        failed=sum(record.error is not None for record in records),
    )


def _role_seconds(records: Sequence[Record]) -> RoleSeconds | None:
    told = [record.role_seconds for record in records if record.role_seconds is not None]
    return sum(told, start=RoleSeconds()) if len(told) == len(records) else None


def _shares(records: Sequence[Record]) -> dict[str, float]:
    """By question, the share of the seeds with which it is answered rightly."""
    found: dict[str, list[bool]] = {}
    for record in records:
        found.setdefault(record.question.id, []).append(record.correct)
    return {question: sum(rights) / len(rights) for question, rights in found.items()}


def _p_value(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    both = ours.keys() & theirs.keys()
    better = sum(ours[question] > theirs[question] for question in both)
    worse = sum(ours[question] < theirs[question] for question in both)
    return mcnemar(better, worse)


def _fewer(target: Sequence[Record], records: Sequence[Record]) -> tuple[float, float] | None:
    """Of the mean answer, as a run may have been stopped in the middle of a method."""
    written, read = (
        _ratio(_mean_count(target, name), _mean_count(records, name))
        for name in ("flops_generated", "flops_all")
    )
    return None if written is None or read is None else (written, read)


def _mean_count(records: Sequence[Record], name: str) -> float:
    return sum(getattr(record.counts, name) for record in records) / len(records)


def _mean_seconds(records: Sequence[Record]) -> float:
    return sum(record.seconds for record in records) / len(records)


def _ratio(one: float, other: float) -> float | None:
    return one / other if other else None
