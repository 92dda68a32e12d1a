"""Scorers as users write them."""

from __future__ import annotations

import pytest

from rsd_engine import Confidence, Probe, Scorer, TargetJudge
from rsd_engine.steps.scorers import check_scorer, parse_scorer


@pytest.mark.parametrize(
    ("text", "scorer"),
    [
        ("judge", TargetJudge()),
        ("judge:greedy", TargetJudge(greedy=True)),
        ("confidence", Confidence("logprob")),
        ("confidence:entropy", Confidence("entropy")),
        ("probe:C:/a folder/p.safetensors", Probe("C:/a folder/p.safetensors")),
        (" draft-probe:p ", Probe("p", "draft")),
    ],
)
def test_a_scorer_as_text(text: str, scorer: Scorer) -> None:
    assert parse_scorer(text) == scorer
    check_scorer(scorer)


@pytest.mark.parametrize("text", ["", "prm", "judge:7", "probe", "probe:", "draft-probe", "Judge"])
def test_an_unknown_scorer_is_told_what_there_is(text: str) -> None:
    with pytest.raises(ValueError, match=r"unknown; write one of judge, judge:greedy, confidence"):
        parse_scorer(text)


def test_a_scorer_is_an_object() -> None:
    for wrong in ("judge", TargetJudge, None, Scorer()):
        with pytest.raises(ValueError, match=r"such as TargetJudge\(\), got"):
            check_scorer(wrong)
