"""The numbers of a run, from times that were made up."""

from __future__ import annotations

import math

import pytest

from rsd_engine.client.load import Load
from rsd_engine.client.request import Answer
from rsd_engine.client.speculation import Speculation
from rsd_engine.client.summary import Spread, summarise

LOAD = Load(math.inf, None)


def test_the_numbers_are_those_of_paper_and_pencil() -> None:
    answers = [
        # first text after 100 ms, then 30 and 50 ms, the end 20 ms later: 100 ms for 4 more tokens
        Answer(10.0, [10.1, 10.13, 10.18], 10.2, 7, 5, Speculation(8, 6, 2)),
        # first text after 300 ms, the end with it; one token, so no TPOT
        Answer(10.5, [10.8], 10.8, 9, 1, Speculation(2, 1, 1)),
        Answer(10.6, [10.7], 10.9, error="the server failed: it broke down"),
        Answer(10.6, error="the server answered 503: full"),
        Answer(10.6, error="the server answered 503: full"),
    ]
    found = summarise(LOAD, answers, 2.0, counted=Speculation(99, 99, 99))
    assert (found.completed, found.failed) == (2, 3)
    assert found.errors == {
        "the server failed: it broke down": 1,
        "the server answered 503: full": 2,
    }
    assert (found.input_tokens, found.output_tokens, found.chunks) == (16, 6, 4)
    assert near(found.ttft, mean=200, median=200, std=100, p99=298)
    assert near(found.tpot, mean=25, median=25, std=0, p99=25)
    assert near(found.itl, mean=40, median=40, std=10, p99=49.8)
    assert near(found.e2el, mean=250, median=250, std=50, p99=299)
    assert found.speculation == Speculation(10, 7, 3)


def near(found: Spread | None, **expected: float) -> bool:
    assert found is not None
    assert vars(found) == pytest.approx(expected, abs=1e-6)
    return True


def test_the_99th_percentile_lies_between_two_values() -> None:
    """Of 0, 1, ..., 200 ms it is 198."""
    answers = [Answer(0.0, [i / 1000], i / 1000, 1, 1) for i in range(201)]
    found = summarise(LOAD, answers, 1.0, None)
    assert found.ttft is not None and found.ttft.p99 == pytest.approx(198.0)


def test_what_a_server_does_not_tell_is_not_made_up() -> None:
    answers = [Answer(0.0, [0.1], 0.2, 3, 4), Answer(0.0, [0.1], 0.2)]
    found = summarise(LOAD, answers, 1.0, None)
    assert found.input_tokens is None and found.output_tokens is None
    assert found.speculation is None
    assert found.to_dict()["load"]["request_rate"] == "inf"


def test_counters_count_where_answers_tell_nothing() -> None:
    counted = Speculation(12, 9, 4)
    assert summarise(LOAD, [Answer(0.0, [0.1], 0.2, 3, 4)], 1.0, counted).speculation == counted


def test_an_answer_without_text_has_no_first_token() -> None:
    found = summarise(LOAD, [Answer(0.0, [], 0.2, 3, 1)], 1.0, None)
    assert found.ttft is found.tpot is found.itl is None
    assert found.e2el is not None and found.completed == 1
