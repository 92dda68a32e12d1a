"""Which of several candidates is taken: against numpy and scipy, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import chisquare

from rsd_engine import GSI, Beam, Best, Selection, Softmax
from rsd_engine.steps.selection import (
    best,
    check_selection,
    draw,
    parse_selection,
    slots_of,
    survivors,
)

NAN, INF = math.nan, math.inf
float32s = st.floats(width=32, allow_infinity=False, min_value=-100, max_value=100)
rewards = st.lists(float32s | st.just(NAN), min_size=1, max_size=12)
draws = st.integers(0, 2**24 - 1).map(lambda bits: bits * 2.0**-24)


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([0.2, 0.9, 0.9], 1),
        ([NAN, 0.1], 1),
        ([NAN, NAN], 0),
        ([-INF, -INF], 0),
        ([NAN, -INF, -1.0], 2),
        ([0.5], 0),
    ],
)
def test_best(values: list[float], index: int) -> None:
    assert best(values) == index


@pytest.mark.parametrize(
    ("values", "width", "kept"),
    [
        ([0.1, 0.3, 0.2], 2, [1, 2]),
        ([0.3, 0.1, 0.3, 0.3], 3, [0, 2, 3]),
        ([0.1, NAN, 0.2], 3, [2, 0, 1]),
        ([NAN, -INF, NAN], 2, [0, 1]),
        ([0.1], 4, [0]),
        ([], 4, []),
    ],
)
def test_survivors(values: list[float], width: int, kept: list[int]) -> None:
    assert survivors(values, width) == kept


@given(rewards, st.integers(1, 12))
def test_survivors_are_those_of_numpy(values: list[float], width: int) -> None:
    order = np.argsort(-np.nan_to_num(np.array(values), nan=-INF), kind="stable")
    assert survivors(values, width) == order[:width].tolist()
    assert best(values) == order[0]


@given(rewards, draws)
def test_a_draw_is_the_inverse_of_scipys_distribution(values: list[float], u: float) -> None:
    scores = np.nan_to_num(np.array(values), nan=-INF)
    if np.all(scores == -INF):
        assert draw(values, u) == 0
        return
    ends = np.cumsum(softmax(scores))
    index = draw(values, u)
    # Where u meets the end of a share, rounding may decide.
    assert index == np.searchsorted(ends, u, side="right") or np.abs(ends - u).min() < 1e-12
    assert scores[index] > -INF


@pytest.mark.parametrize(
    ("scores", "u", "index"),
    [
        ([0.0, 0.0], 0.0, 0),
        ([0.0, 0.0], 0.4999, 0),
        ([0.0, 0.0], 0.5, 1),
        ([-INF, 0.0], 0.0, 1),
        ([0.0, -INF, 0.0], 0.5, 2),
        ([NAN, NAN], 0.9, 0),
        ([-INF, NAN], 0.9, 0),
        ([1e6, 0.0], 1 - 2.0**-24, 0),
        ([-1e6, -1e6 + math.log(3)], 0.26, 1),
        ([0.0, INF], 0.0, 1),
    ],
)
def test_draw(scores: list[float], u: float, index: int) -> None:
    assert draw(scores, u) == index


def test_even_draws_have_the_shares_of_softmax() -> None:
    scores = [0.3 * 5, 0.9 * 5, NAN, 0.6 * 5]
    counts = np.bincount([draw(scores, (i + 0.5) / 4000) for i in range(4000)], minlength=4)
    assert counts[2] == 0
    shares = softmax([scores[0], scores[1], scores[3]])
    assert chisquare(counts[[0, 1, 3]], 4000 * shares).statistic < 0.01  # even, not random


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Softmax(-1.0), r"^beta must be in \[0, 1e6\], got -1\.0"),
        (lambda: Softmax(math.nan), r"^beta must be "),
        (lambda: Softmax("20"), r"^beta must be a number in \[0, 1e6\], got '20'"),  # type: ignore[arg-type]
        (lambda: GSI(beta=INF), r"^beta must be "),
        (lambda: GSI(threshold=NAN), r"^threshold must be infinite or in \[-3\.4e38, 3\.4e38\]"),
        (lambda: GSI(threshold=True), r"^threshold must be a number"),
        (lambda: Beam(0), r"^width must be in \[1, 64\], got 0"),
        (lambda: Beam(65), r"^width must be in \[1, 64\], got 65"),
        (lambda: Beam(2.0), r"^width must be an integer in \[1, 64\], got 2\.0"),  # type: ignore[arg-type]
    ],
)
def test_bad_numbers_are_refused_by_name(make: object, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "selection"),
    [
        ("best", Best()),
        ("softmax:20", Softmax(20.0)),
        ("gsi", GSI(20.0, 10.0)),
        ("gsi:5", GSI(5.0, 10.0)),
        ("gsi:5:-inf", GSI(5.0, -INF)),
        (" beam:4 ", Beam(4)),
    ],
)
def test_parse(text: str, selection: Selection) -> None:
    assert parse_selection(text) == selection
    assert parse_selection(selection.text) == selection


@pytest.mark.parametrize(
    "text", ["", "Best", "best:1", "softmax", "softmax:x", "softmax:-1", "beam:2.0", "beam:0"]
)
def test_parse_names_what_it_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=f"^select = '{text}': "):
        parse_selection(text)


@pytest.mark.parametrize("value", [Best, "best", 1, Selection()])
def test_only_selections_select(value: object) -> None:
    with pytest.raises(ValueError, match="^select must be one of rsd_engine's selections"):
        check_selection(value)


def test_beams_have_candidates_each() -> None:
    assert [slots_of(4, s) for s in (None, Best(), GSI(), Beam(3))] == [4, 4, 4, 12]


def test_parse_says_what_is_no_number() -> None:
    with pytest.raises(
        ValueError, match=r"^select = 'gsi:x': 'x' is no number, such as 20 or 0.7$"
    ):
        parse_selection("gsi:x")
