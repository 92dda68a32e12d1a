"""Guesses change the number of passes and nothing else: with toy models, on every executor."""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import replace
from functools import cache

import pytest

from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone, StepDecided
from rsd_engine.core.slots import SlotRequest
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.state.enums import GuessSource, Mode, RecordKind, Role, Speculation
from tests.loop.toy import CHARS, EOS, NUM_IDS, Writer, run, toy_core, toy_request

SOURCES = [
    Speculation.DRAFT,
    Speculation.NGRAM,
    Speculation.REJECTED,
    Speculation.REJECTED | Speculation.DRAFT,
]
ALONE = [Speculation.DRAFT, Speculation.NGRAM]


def writer(seed: int, period: int = 4) -> Writer:
    """Depends on the last tokens, often repeats itself, ends steps and outputs now and then."""

    @cache
    def logits(row: tuple[int, ...]) -> list[float]:
        at = len(row) % period
        rng = random.Random(zlib.crc32(repr((seed, row[-2:], at)).encode()))
        found = [rng.gauss(0, 1.5) for _ in range(NUM_IDS)]
        found[CHARS.index("\n")] += 1.5 if row[-1] == CHARS.index("\n") else 0.3
        found[EOS] -= 1.0
        return found

    return logits


def mixed(target: Writer, other: Writer, seed: int) -> Writer:
    """A draft that mostly does as the target."""

    def logits(row: tuple[int, ...]) -> list[float]:
        apart = zlib.crc32(repr((seed, row)).encode()) % 4 == 0
        return list((other if apart else target)(row))

    return logits


TARGET = writer(1)
DRAFT = mixed(TARGET, writer(2), 3)


def reward_of(row: tuple[int, ...]) -> float:
    return zlib.crc32(repr(row).encode()) % 1000 / 1000


def a_request(rng: random.Random, mode: Mode) -> SlotRequest:
    return toy_request(
        "".join(rng.choice("abcde") for _ in range(rng.randint(2, 9))),
        mode=mode,
        max_tokens=rng.choice([1, 7, 40, 60]),
        max_step_tokens=rng.choice([1, 5, 60]),
        min_tokens=rng.choice([0, 0, 9]),
        stop=rng.choice([(), ("ab",), ("c.", "ll")]),
        temperature=rng.choice([0.0, 0.0, 0.7, 1.3]),
        top_k=rng.choice([0, 5]),
        top_p=rng.choice([1.0, 0.9]),
        min_p=rng.choice([0.0, 0.05]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        seed=rng.randrange(1000),
        num_logprobs=rng.choice([-1, 0, 2]),
        policy=(PolicyKind.THRESHOLD, rng.choice([0.2, 0.6, 0.95]), 0.0),
    )


def told(events: list[Event]) -> list[object]:
    """Everything about the steps but how they were found."""
    found: list[object] = []
    for event in events:
        if isinstance(event, StepDecided):
            reward = None if math.isnan(event.reward) else event.reward
            found.append(
                (event.kind, event.source, reward, event.token_ids, event.finish, event.logprobs)
            )
        elif isinstance(event, RequestDone):
            found.append(event.finish)
    return found


def outcomes(core: EngineCore, requests: list[SlotRequest]) -> list[list[object]]:
    return [told(events) for events in run(core, requests).values()]


@pytest.mark.parametrize("speculation", SOURCES)
@pytest.mark.parametrize("guess_tokens", [0, 1, 3, 8])
@pytest.mark.parametrize("mode", [Mode.RSD, Mode.TARGET])
def test_a_result_does_not_depend_on_guesses(
    speculation: Speculation, guess_tokens: int, mode: Mode
) -> None:
    rng = random.Random(guess_tokens)
    plain = [a_request(rng, mode) for _ in range(24)]
    asked = [
        request
        if i % 3 == 2
        else replace(request, speculation=speculation, guess_tokens=guess_tokens)
        for i, request in enumerate(plain)
    ]
    wanted = outcomes(toy_core(DRAFT, TARGET, reward_of), plain)
    core = toy_core(DRAFT, TARGET, reward_of, max_guesses=rng.choice([1, 6, 40]))
    core.state.guesses_at_rate.fill_(2)
    assert outcomes(core, asked) == wanted


@pytest.mark.parametrize("num_pages", [64, 80])
def test_under_preemption(num_pages: int) -> None:
    rng = random.Random(num_pages)
    plain = [a_request(rng, rng.choice([Mode.RSD, Mode.TARGET])) for _ in range(16)]
    asked = [
        replace(request, speculation=rng.choice(SOURCES), guess_tokens=rng.choice([1, 4]))
        for request in plain
    ]
    core = toy_core(
        DRAFT, TARGET, reward_of,
        max_guesses=12, num_pages=2 * num_pages, tokens_per_page=(2, 2, 2), max_len=72,
    )  # fmt: skip
    for request in asked:
        assert core.check(request) is None
    assert outcomes(core, asked) == outcomes(toy_core(DRAFT, TARGET, reward_of), plain)


def passes(core: EngineCore, request: SlotRequest) -> tuple[int, int]:
    """The target's passes, and tokens of the output."""
    [events] = run(core, [request]).values()
    kept = [
        e
        for e in events
        if isinstance(e, StepDecided) and e.kind in (RecordKind.KEPT, RecordKind.PART)
    ]
    [done] = [event for event in events if isinstance(event, RequestDone)]
    return done.counters[Role.TARGET].passes, sum(len(step.token_ids) for step in kept)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_a_draft_that_is_the_target_is_always_right(temperature: float, k: int) -> None:
    """k + 1 tokens a pass (Leviathan et al., 2023), until the step ends."""

    def endless(row: tuple[int, ...]) -> list[float]:
        return [x - 1e9 * (i >= CHARS.index(".")) for i, x in enumerate(TARGET(row))]

    core = toy_core(endless, endless, reward_of, max_guesses=8)
    request = toy_request(
        mode=Mode.TARGET, max_tokens=54, temperature=temperature, seed=5,
        speculation=Speculation.DRAFT, guess_tokens=k,
    )  # fmt: skip
    num_passes, num_tokens = passes(core, request)
    assert num_tokens == 54 and num_passes == math.ceil(54 / (k + 1))
    made, kept = core.state.guesses_made, core.state.guesses_kept
    assert int(made[GuessSource.DRAFT].sum()) == int(kept[GuessSource.DRAFT].sum())


def test_ngrams_find_what_repeats() -> None:
    def cycle(row: tuple[int, ...]) -> list[float]:
        return [5.0 * (i == (row[-1] + 1) % 5) for i in range(NUM_IDS)]

    core = toy_core(cycle, cycle, reward_of, max_guesses=8)
    request = toy_request(
        "abcdeab", mode=Mode.TARGET, max_tokens=50, speculation=Speculation.NGRAM, guess_tokens=4
    )
    num_passes, num_tokens = passes(core, request)
    assert num_tokens == 50 and num_passes <= 50 / 4


def test_a_rejected_step_is_the_first_guess() -> None:
    """The target writes the same step, in one pass."""
    core = toy_core(TARGET, TARGET, lambda row: 0.0, max_guesses=64)
    request = toy_request(speculation=Speculation.REJECTED, max_step_tokens=12)
    [events] = run(core, [request]).values()
    steps = [event for event in events if isinstance(event, StepDecided)]
    rejected = [s for s in steps if s.kind == RecordKind.REJECTED]
    kept = [s for s in steps if s.kind == RecordKind.KEPT]
    assert [s.token_ids for s in rejected] == [s.token_ids for s in kept]
    # What ends a step needs no pass of its own: it is the last of the guesses.
    assert [s.guesses for s in kept] == [len(s.token_ids) for s in kept]
    assert sum(s.guesses for s in kept) == int(core.state.guesses_kept[GuessSource.REJECTED].sum())
    [done] = [event for event in events if isinstance(event, RequestDone)]
    assert done.counters[Role.TARGET].passes == len(kept)
