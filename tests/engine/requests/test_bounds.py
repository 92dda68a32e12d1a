"""Values at and past the bounds of what the device holds: refused at once, or harmless."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rsd_engine import Clip, Constant, Engine, Logistic, SamplingParams, Threshold
from rsd_engine.arguments import MAX_FLOAT32, MAX_INT32
from rsd_engine.core.slots import fill_slot
from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.engine.requests.checker import RequestChecker
from rsd_engine.engine.requests.slots import slot_request
from rsd_engine.sampling_params import MAX_SAMPLES, MAX_SEED
from rsd_kernels.state.slots import SlotState
from tests.engine.harness.runs import all_pages_free, decisions, generate

Values = tuple[Any, ...]
LONG = "x\n" * 5000
HUGE: Values = (2**63, 2**64, 10**400, 10**5000, np.uint64(2**63), -(2**70))
NO_NUMBERS: Values = (
    math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf"), 10**400, Fraction(10**400),
    1e300, 3.5e38, True, np.bool_(True), Decimal("0.5"), "0.5", LONG, 1j, [0.5], np.ones(3),
)  # fmt: skip
TOO_SMALL: Values = (1e-300, 1e-45, -1e-39, np.float64(1e-39), 5e-324, Fraction(1, 10**400))
NO_INTEGERS: Values = (
    1.0, math.nan, True, np.bool_(True), np.float32(1), Fraction(1), Decimal(1), "1", [1],
    np.arange(3), LONG,
)  # fmt: skip
PAST_INT32: Values = (2**31, np.int64(2**31), np.uint32(2**31))
INT32 = (
    "top_k", "max_tokens", "min_tokens", "max_step_tokens", "max_steps", "truncate_prompt_tokens",
)  # fmt: skip
INTEGERS = (*INT32, "n", "seed", "logprobs", "prompt_logprobs")
NUMBERS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
REFUSED: dict[str, Values] = {
    "temperature": (-1e-9, 9e-7, 1.1e6, np.float16(6e-8)),
    "repetition_penalty": (0, -0.0, 9e-7, 1.1e6),
    "top_p": (0, -0.0, 1.0000001),
    "n": (MAX_SAMPLES + 1, 0),
    "stop_token_ids": (*([v] for v in (*HUGE, *PAST_INT32, *NO_INTEGERS, -1)), [1] * 33),
    "allowed_token_ids": (*([v] for v in (*HUGE, *PAST_INT32, *NO_INTEGERS, -1)), [1] * 1025),
    "logit_bias": (
        *({v: 1.0} for v in (*HUGE, *PAST_INT32, -1, 1.0, True, "1" * 5000, "-1", "1.0")),
        *({5: v} for v in (*NO_NUMBERS, *TOO_SMALL, 100.1)),
        dict.fromkeys(range(1025), 1.0),
    ),
    "stop": ("", [""], "x" * 256, "é" * 128, "\ud83d", ["a"] * 256, b"a", 5, [5], [LONG]),
    "bad_words": ("a", [""], [" \n"], ["x" * 4097], ["a"] * 129, ["\ud83d"], [5], 5, [LONG]),
    "mode": ("both", 5, ["rsd"], np.array(["rsd", "draft"]), LONG),
    "policy": (0.7, "clip", Clip, LONG),
}  # fmt: skip


def refused(name: str) -> Values:
    kinds: Values = ()
    if name in INTEGERS:
        kinds = (*HUGE, *NO_INTEGERS)
    if name in INT32:
        kinds += PAST_INT32
    if name in NUMBERS:
        kinds = (*NO_NUMBERS, *TOO_SMALL)
    return (*kinds, *REFUSED.get(name, ()))


@pytest.mark.parametrize("name", [*INTEGERS, *NUMBERS, *(set(REFUSED) - {*INTEGERS, *NUMBERS})])
def test_what_a_slot_cannot_hold_is_refused_in_one_line(name: str) -> None:
    assert len(refused(name)) > 3
    for value in refused(name):
        with pytest.raises(ValueError) as error:
            SamplingParams(**{name: value})
        said = str(error.value)
        assert name in said and len(said) < 320 and "\n" not in said


@pytest.mark.parametrize("make", [Constant, Threshold, lambda v: Logistic(v, 0.5),
                                  lambda v: Logistic(1.0, v)])  # fmt: skip
def test_policies_whose_numbers_float32_cannot_hold(make: Any) -> None:
    infinite = (math.inf, -math.inf, np.float64("inf")) if make is Threshold else ()
    for value in (*NO_NUMBERS, *TOO_SMALL):
        if isinstance(value, float) and value in infinite:
            continue  # no reward reaches it, or all do
        with pytest.raises(ValueError, match=r"p|threshold|alpha") as error:
            make(value)
        assert len(str(error.value)) < 320 and "\n" not in str(error.value)


def odd_numbers(value: float) -> Values:
    """One number in the types that are taken like Python's."""
    return (np.float32(value), np.float64(value), np.float16(value), Fraction(value))


NORMAL = 2.0**-126
ACCEPTED: dict[str, Values] = {
    "temperature": (
        0, -0.0, 1e-6, 1e6, np.float32(0.7), np.float16(0.5), np.int8(1), Fraction(1, 3),
    ),
    "top_p": (NORMAL, 1e-9, 1, np.float64(1.0), np.nextafter(1.0, 0.0)),
    "min_p": (0, -0.0, NORMAL, 1.0, np.float32(1e-30)),
    "repetition_penalty": (1e-6, 1e6, np.float32(1.1), 1, Fraction(11, 10)),
    "presence_penalty": (-2, 2, NORMAL, -0.0),
    "frequency_penalty": (-2, 2.0, -NORMAL, np.float16(0.1)),
    "top_k": (-1, 0, 1, MAX_INT32, np.uint8(3), np.int64(MAX_INT32)),
    "seed": (0, MAX_SEED, np.uint64(MAX_SEED), np.int8(7)),
    "max_tokens": (1, 9, np.int8(9)),
    "min_tokens": (0, 1),
    "max_step_tokens": (1, MAX_INT32, None, np.int32(MAX_INT32)),
    "max_steps": (1, MAX_INT32, np.int64(3)),
    "truncate_prompt_tokens": (1, MAX_INT32, None),
    "logprobs": (None, 0, 20, np.int8(3)),
    "prompt_logprobs": (None, 0, 20),
    "stop": (None, "x" * 255, "é" * 127, ["\n"] * 255, [chr(c) for c in range(1, 128)]),
    "stop_token_ids": (None, [], list(range(20)), np.arange(5, 9), [np.uint8(7)]),
    "allowed_token_ids": (None, [5], list(range(3, 200)), np.array([5, 7, 5])),
    "logit_bias": ({}, {5: -100}, {"5": 100.0, 6: NORMAL}, {np.int16(7): np.float32(1)}),
    "bad_words": (None, [], ["a"] * 128, ["ab", "\n\na"]),
    "ignore_eos": (True, np.bool_(False)),
    "policy": (
        None, Threshold(MAX_FLOAT32), Threshold(-MAX_FLOAT32), Threshold(math.inf),
        Threshold(-math.inf), 
        *(Threshold(v) for v in odd_numbers(0.5)),
        Logistic(1e6, 0.5), Logistic(1e-6, MAX_FLOAT32), Logistic(1e6, -MAX_FLOAT32),
        Constant(NORMAL), Constant(1), Constant(-0.0), Clip(),
    ),
}  # fmt: skip
COLUMNS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "top_k", "seed", "sample_index", "num_logprobs", "max_steps", "max_step_tokens", "min_length",
    "length_limit", "policy_kind", "policy_a", "policy_b", "num_biased", "num_bad_words",
)  # fmt: skip


def slots_of(engine: Engine, params: SamplingParams) -> list[Any]:
    """The samples of a request with these parameters, checked as the engine checks them."""
    prompt = ResolvedPrompt("abc", (0, 68, 69), "abc")
    [request] = RequestChecker(engine.parts, SamplingParams()).check_all([prompt], params)
    return request.slots


def expected(request: Any, name: str) -> float:
    if name.startswith("policy"):
        return float(request.policy[("policy_kind", "policy_a", "policy_b").index(name)])
    counted = {"num_biased": "biases", "num_bad_words": "bad_words"}
    return len(getattr(request, counted[name])) if name in counted else getattr(request, name)


def assert_held(state: SlotState, slot: int, request: Any) -> None:
    """Every column has the request's value, rounded; none became 0, infinite or NaN."""
    for name in COLUMNS:
        column: Tensor = getattr(state, name)
        held, given_ = column[slot].item(), expected(request, name)
        if column.is_floating_point():
            assert held == float(np.float32(given_)), name
            assert (held == 0) == (given_ == 0) and not math.isnan(held), name
            assert math.isinf(held) == math.isinf(given_), name
        else:
            assert held == int(given_), name
    biases = state.bias[slot, : len(request.biases)].tolist()
    assert biases == [float(np.float32(bias)) for _, bias in request.biases]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_accepted_fits_the_columns_of_a_slot(shared_engine: Engine, data: Any) -> None:
    """Fields at their bounds and anywhere between, in any combination."""
    floats = st.floats(width=64) | st.floats(-2, 2) | st.integers(-(10**40), 10**40)
    drawn: dict[str, Any] = {}
    for name in data.draw(st.sets(st.sampled_from(sorted(ACCEPTED)), max_size=6)):
        values = st.sampled_from(ACCEPTED[name])
        if name in NUMBERS:
            values |= floats
        if name in INTEGERS:
            values |= st.integers(-2, 2**65)
        drawn[name] = data.draw(values)
    try:
        params = SamplingParams(**drawn)
    except ValueError as error:
        assert any(name in str(error) for name in drawn)
        return
    try:
        [request] = slots_of(shared_engine, params)
    except ValueError as error:  # its automaton, or ids past the vocabulary
        assert any(name in str(error) for name in ("stop", "bad_words", "top_k"))
        return
    state = shared_engine.parts.core.state
    assert not shared_engine.parts.core.has_work
    fill_slot(state, 1, request, generation=0, arrival=0)
    state.phase[1] = state.active[1] = 0
    assert_held(state, 1, request)


CASES = [(name, value) for name, values in ACCEPTED.items() for value in values]
BASE = {"max_tokens": 12, "seed": 3, "temperature": 1.0, "max_steps": 8}


@pytest.mark.parametrize("first", range(0, len(CASES), 10))
def test_a_request_at_its_bounds_harms_no_stranger(engine: Engine, first: int) -> None:
    """Ten at a time beside a stranger, whose result is that of a run alone."""
    stranger = SamplingParams(temperature=1.0, seed=2, max_tokens=30)
    [alone] = generate(engine, ["ab"], stranger)
    odd = [SamplingParams(**{**BASE, name: value}) for name, value in CASES[first : first + 10]]
    results = generate(engine, ["ab", *["a longer text"] * len(odd)], [stranger, *odd])
    assert decisions(results[0]) == decisions(alone)
    assert len(results) == len(odd) + 1 and all_pages_free(engine)
    for result in results[1:]:
        assert result.outputs[0].finish_reason in ("stop", "length", "steps")
        assert all(0 <= i < engine.parts.models.num_ids for i in result.outputs[0].token_ids)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["a", "\u0301"], "which is no token"), ([chr(i) for i in range(48, 113)], "got 130")],
)
def test_bad_words_of_no_token_and_of_two_forms(
    engine: Engine, words: list[str], said: str
) -> None:
    def encode(text: str) -> list[int]:
        letter = text.strip()
        return [ord(letter) + 128 * text.startswith(" ")] if letter.isascii() else []

    prompt = ResolvedPrompt("abc", (0, 68, 69), "abc")
    writers = engine.parts.rules.writers.items()
    same = {role: replace(tokens, encode=encode) for role, tokens in writers}
    rules = replace(engine.parts.rules, writers=same)
    slot_request(prompt, SamplingParams(bad_words=words[:1]), rules, seed=0)
    with pytest.raises(ValueError, match=said):
        slot_request(prompt, SamplingParams(bad_words=words), rules, seed=0)


def test_the_values_are_python_numbers() -> None:
    for name in (*NUMBERS, *INTEGERS):
        for value in ACCEPTED.get(name, ()):
            held = getattr(SamplingParams(**{name: value}), name)
            kind = type(None) if value is None else float if name in NUMBERS else int
            assert type(held) is kind and held == (value and kind(value)), name
    assert math.copysign(1, SamplingParams(temperature=-0.0).temperature) == 1


def test_closing_a_request_of_many_samples_takes_linear_time(engine: Engine) -> None:
    """16 times the samples, most of them queued: far from 256 times the time."""

    def seconds(n: int) -> float:
        stream = engine.stream("ab", SamplingParams(n=n, max_tokens=4, seed=1))
        assert engine.parts.core.has_work
        started = time.perf_counter()
        stream.close()
        return time.perf_counter() - started

    few = min(seconds(500) for _ in range(3))
    assert min(seconds(8000) for _ in range(2)) < 64 * few
    assert all_pages_free(engine) and not engine.parts.core.has_work
