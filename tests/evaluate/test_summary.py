"""The summary of records that were made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rsd_engine.evaluate.record import Counts, Question, Record, RoleSeconds
from rsd_engine.evaluate.statistics import mcnemar, wilson_interval
from rsd_engine.evaluate.summary import summarise


def records(
    method: str, rights: Sequence[int], counts: Counts, seed: int = 0, **changes: Any
) -> list[Record]:
    fixed: dict[str, Any] = {"settings": {}, "seed": seed, "seconds": 0.5}
    return [
        Record(
            question=Question(f"q{i}", "?", "1", "mine"),
            method=method,
            text="",
            found=None,
            correct=bool(right),
            finish_reason="stop",
            counts=counts,
            **fixed | changes,
        )
        for i, right in enumerate(rights)
    ]


TARGET = records(
    "target", [1, 1, 1, 0, 0, 0], Counts(target_tokens=10, flops_generated=80, flops_all=100)
)
OURS = records(
    "rsd",
    [1, 0, 1, 1, 1, 1],
    Counts(
        draft_tokens=5, discarded_tokens=2, target_tokens=4, prm_tokens_read=9,
        steps_accepted=3, steps_rejected=1, flops_generated=20, flops_all=50,
    ),
    settings={"threshold": 0.7},
    seconds=0.25,
    role_seconds=RoleSeconds(0.125, 0.0625, 0.03125),
)  # fmt: skip
DRAFT = records(
    "draft", [1, 0, 0, 0, 1, 0], Counts(draft_tokens=8, flops_generated=8, flops_all=10)
)


def test_rows() -> None:
    target, ours, draft = summarise([*TARGET, *OURS, *DRAFT])
    assert (target.method, target.accuracy, target.p_value) == ("target", 0.5, None)
    assert (target.fewer_flops, target.speed_up) == ((1.0, 1.0), 1.0)
    assert target.acceptance is None and target.draft_alone == 0.0
    assert ours.accuracy == pytest.approx(5 / 6)
    assert (ours.low, ours.high) == wilson_interval(5, 6)
    assert ours.p_value == mcnemar(3, 1)  # right on q3, q4 and q5 only, wrong on q1 only
    assert ours.counts == Counts(30, 24, 12, 54, 18, 6, 120, 300)
    assert ours.acceptance == 0.75
    assert ours.fewer_flops == (4.0, 2.0)
    assert (ours.seconds, ours.speed_up) == (1.5, 2.0)
    assert ours.role_seconds == RoleSeconds(0.75, 0.375, 0.1875)
    assert target.role_seconds is None  # its records do not tell
    assert (ours.seeds, ours.questions, ours.failed) == ((0,), 6, 0)
    assert ours.draft_alone == 0.0
    assert draft.draft_alone == pytest.approx(2 / 6)
    assert draft.p_value == mcnemar(1, 2)


def test_rsd_that_asked_the_target_for_nothing_was_the_draft_alone() -> None:
    mixed = [*records("rsd", [1, 1, 0], Counts()), *records("rsd", [1], Counts(target_tokens=1))]
    [row] = summarise(mixed)
    assert row.draft_alone == 0.5
    assert (row.p_value, row.fewer_flops, row.speed_up) == (None, None, None)


def test_more_seeds_are_more_answers_to_the_same_questions() -> None:
    again = records("rsd", [1, 0, 0, 1, 0, 0], Counts(), seed=1, settings={"threshold": 0.7})
    also = records("target", [1, 1, 1, 0, 0, 0], Counts(), seed=1)
    _, ours = summarise([*TARGET, *also, *OURS, *again])
    assert (ours.seeds, ours.questions) == ((0, 1), 6)
    assert ours.accuracy == pytest.approx(7 / 12)
    assert (ours.low, ours.high) == wilson_interval(4, 6)  # 3.5 of the 6 questions
    # Shares: ours 1, 0, 1/2, 1, 1/2, 1/2, the target's 1, 1, 1, 0, 0, 0.
    assert ours.p_value == mcnemar(3, 2)


def test_settings_are_rows_of_their_own_and_errors_are_counted() -> None:
    other = records("rsd", [0, 0], Counts(), settings={"threshold": 0.9}, error="no pages")
    first, second = summarise([*OURS, *other])
    assert (first.settings, second.settings) == ({"threshold": 0.7}, {"threshold": 0.9})
    assert (first.failed, second.failed) == (0, 2)
    assert second.to_json()["settings"] == {"threshold": 0.9}
    assert summarise([]) == []
