"""Methods: what each asks of the engine, and how it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rsd_engine import (
    GSI,
    Beam,
    Best,
    Clip,
    Constant,
    Logistic,
    SamplingParams,
    TargetJudge,
    Threshold,
)
from rsd_engine.evaluate.choosing import majority
from rsd_engine.evaluate.methods import METHODS, Decoding, Trial, make_trials

SINGLE = SamplingParams(temperature=0.0, max_tokens=9)
SEVERAL = SamplingParams(temperature=0.7, top_p=0.8, max_tokens=9)
DECODING = Decoding(SINGLE, SEVERAL)


def trials(*texts: str, thresholds: tuple[float, ...] = (0.7,)) -> list[Trial]:
    return make_trials(texts, thresholds, DECODING)


def changed(params: SamplingParams, base: SamplingParams) -> dict[str, object]:
    """Fields in which params differ."""
    return {name: value for name, value in vars(params).items() if value != getattr(base, name)}


KEPT = {"mode": "rsd", "policy": Constant(1.0)}


@pytest.mark.parametrize(
    ("text", "settings", "asks"),
    [
        ("target", {}, {"mode": "target"}),
        ("draft", {}, {"mode": "draft"}),
        ("speculative", {}, {"mode": "target", "speculate": "draft"}),
        ("rsd", {"threshold": 0.7}, {"mode": "rsd", "policy": Threshold(0.7)}),
        ("rsd:clip", {"policy": "clip"}, {"mode": "rsd", "policy": Clip()}),
        (
            "rsd:logistic:10:0.6",
            {"policy": "logistic:10:0.6"},
            {"mode": "rsd", "policy": Logistic(10.0, 0.6)},
        ),
        (
            "rsd+guesses",
            {"threshold": 0.7},
            {"mode": "rsd", "policy": Threshold(0.7), "speculate": "rejected+draft"},
        ),
    ],
)
def test_methods_with_one_answer(
    text: str, settings: dict[str, object], asks: dict[str, object]
) -> None:
    [trial] = trials(text)
    assert (trial.method, trial.settings, trial.choose) == (text, settings, None)
    assert changed(trial.params, SINGLE) == asks


@pytest.mark.parametrize(
    ("text", "settings", "asks"),
    [
        ("majority@5", {"n": 5}, {"mode": "draft", "n": 5}),
        ("majority", {"n": 8}, {"mode": "draft", "n": 8}),
        ("best@3", {"n": 3, "aggregate": "last"}, KEPT | {"n": 3, "prm_overflow": "accept"}),
        ("best@3:min", {"n": 3, "aggregate": "min"}, KEPT | {"n": 3, "prm_overflow": "accept"}),
        ("process@6", {"candidates": 6}, KEPT | {"step_candidates": 6, "select": Best()}),
        (
            "beam@2:3",
            {"candidates": 2, "width": 3},
            KEPT | {"step_candidates": 2, "select": Beam(3)},
        ),
        (
            "gsi",
            {"candidates": 4, "beta": 20.0, "threshold": 10.0},
            {"mode": "rsd", "step_candidates": 4, "select": GSI()},
        ),
        (
            "gsi@2:5:-1.5",
            {"candidates": 2, "beta": 5.0, "threshold": -1.5},
            {"mode": "rsd", "step_candidates": 2, "select": GSI(5.0, -1.5)},
        ),
    ],
)
def test_methods_that_draw_several(
    text: str, settings: dict[str, object], asks: dict[str, object]
) -> None:
    [trial] = trials(text)
    assert (trial.method, trial.settings) == (text, settings)
    assert changed(trial.params, SEVERAL) == asks
    assert (trial.choose is None) == ("n" not in asks)
    assert trial.choose is majority or not text.startswith("majority")
    assert trial.aggregate == settings.get("aggregate")


def test_only_methods_with_a_threshold_are_swept() -> None:
    found = trials("target", "rsd", "rsd:clip", "rsd+guesses", thresholds=(0.5, 0.9))
    assert [(trial.method, trial.settings.get("threshold")) for trial in found] == [
        ("target", None), ("rsd", 0.5), ("rsd", 0.9), ("rsd:clip", None),
        ("rsd+guesses", 0.5), ("rsd+guesses", 0.9),
    ]  # fmt: skip


def test_the_judge_needs_the_engine_s_scorer() -> None:
    [trial] = make_trials(["judge"], [7 / 9], DECODING, TargetJudge())
    assert trial.params.policy == Threshold(7 / 9)
    with pytest.raises(ValueError, match="'judge' needs an engine whose scorer is target as judge"):
        trials("judge")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oracle", r"method 'oracle' is unknown; allowed: target, draft, speculative, majority@N"),
        ("target@2", "'target@2' is written wrongly; write target"),
        ("draft:x", "'draft:x' is written wrongly; write draft"),
        ("majority@x", "write majority@N"),
        ("majority@", "write majority@N"),
        ("majority@0", r"has 0; the number must be in \[1, 1024\]"),
        ("best@2:", "write best@N"),
        ("best@2:max", "ends with 'max'; rewards are taken together as one of last, mean, min"),
        ("process@65", r"must be in \[1, 64\]"),
        ("beam@2:x", "ends with 'x'; write the number of beams"),
        ("beam@2:0", r"width must be in \[1, 64\], got 0"),
        ("gsi@2:1:2:3", "must end with beta and threshold, such as gsi@4:20:10"),
        ("gsi@2:-1:2", "beta must be in"),
        ("rsd:clap", "policy = 'clap'"),
        ("rsd@2", r"write rsd\[:POLICY\]"),
        ("", "method '' is unknown"),
    ],
)
def test_what_is_written_wrongly_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trials(text)


def test_nothing_comes_twice() -> None:
    with pytest.raises(ValueError, match="'rsd' comes twice with {'threshold': 0.7}"):
        trials("rsd", "target", "rsd")


def test_the_documentation_has_every_method() -> None:
    text = (Path(__file__).parents[2] / "docs" / "eval.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    told = {form.replace("\\|", "|"): (does, source) for form, does, source in rows}
    assert {method.form: (method.does, method.source) for method in METHODS.values()}.items() <= (
        told.items()
    )
