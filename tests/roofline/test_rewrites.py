"""The expected time of a rewrite with guesses, beside one that is played out."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.rewrites import guessed_rewrite, guessed_round, passes_after
from rsd_engine.roofline.rounds import Setting, Triple, round_seconds
from rsd_engine.roofline.shape import ModelShape

FAST = Device("x", bandwidth=1e3, flops=1e12, memory_bytes=1e9)  # only bytes count
SLOW = Device("y", bandwidth=1e12, flops=1e3, memory_bytes=1e9)  # only products count


def shape(body: int, head: int) -> ModelShape:
    return ModelShape(
        num_parameters=body + head, body_parameters=body, head_parameters=head,
        attention_width=0, kv_bytes_per_token=0, bytes_per_parameter=2,
    )  # fmt: skip


# On FAST a pass takes the draft 0.1 s and the target 1 s. On SLOW a row takes the draft 0.08 s and
# its head 0.02 s more, the target 0.8 and 0.2.
TRIPLE = Triple(shape(40, 10), shape(400, 100), shape(100, 0))


def run_of(rng: random.Random, guesses: int, acceptance: float) -> int:
    """How many guesses are right before the first that is wrong."""
    for right in range(guesses):
        if rng.random() >= acceptance:
            return right
    return guesses


def play(
    rng: random.Random,
    length: int,
    number: int,
    acceptance: float,
    draft: float,
    target: Callable[[int, int], float],  # of rows and places
) -> tuple[float, int]:
    """Seconds and target passes of one rewrite: the rejected step first, then `number` guesses."""
    written = run_of(rng, length, acceptance) + 1
    seconds, passes = target(1 + length, 1 + length), 1
    while written < length:
        seconds += number * draft + target(1 + number, 1 + number)
        passes += 1
        written += run_of(rng, number, acceptance) + 1
    return seconds, passes


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 0.97, 1.0])
@pytest.mark.parametrize("device", [FAST, SLOW], ids=["reading", "products"])
def test_a_rewrite_played_out(device: Device, acceptance: float) -> None:
    length = 12

    def target(rows: int, places: int) -> float:
        return 1.0 if device is FAST else 0.8 * rows + 0.2 * places

    found = guessed_rewrite(TRIPLE, Setting(device, step_tokens=length), 0.0, acceptance)
    rng = random.Random(1)
    played = [play(rng, length, found.draft_tokens, acceptance, 0.1, target) for _ in range(8000)]
    assert found.seconds == pytest.approx(sum(s for s, _ in played) / 8000, rel=0.02)
    passes = sum(p for _, p in played) / 8000
    assert found.target_passes == pytest.approx(passes, rel=0.02)
    assert found.tokens_a_pass == pytest.approx(length / found.target_passes)


def test_the_best_number_of_guesses_is_the_quickest_to_play() -> None:
    found = guessed_rewrite(TRIPLE, Setting(FAST, step_tokens=20), 0.0, 0.7)

    def mean(number: int) -> float:
        rng = random.Random(2)
        runs = (play(rng, 20, number, 0.7, 0.1, lambda rows, places: 1.0) for _ in range(8000))
        return sum(seconds for seconds, _ in runs) / 8000

    means = {number: mean(number) for number in range(9)}
    assert means[found.draft_tokens] <= min(means.values()) * 1.01
    assert 1 <= found.draft_tokens <= 8


def naive_passes(tokens: int, guesses: int, acceptance: float) -> float:
    """By every outcome of the next pass."""
    if tokens <= 0:
        return 0.0
    chances = [(1 - acceptance) * acceptance**right for right in range(guesses)]
    chances.append(acceptance**guesses)
    return 1 + sum(
        chance * naive_passes(tokens - right - 1, guesses, acceptance)
        for right, chance in enumerate(chances)
    )


@pytest.mark.parametrize("guesses", [0, 1, 3, 9])
@pytest.mark.parametrize("acceptance", [0.0, 0.4, 0.9, 1.0])
def test_passes_by_every_outcome(guesses: int, acceptance: float) -> None:
    wanted = [naive_passes(tokens, guesses, acceptance) for tokens in range(9)]
    assert passes_after(8, guesses, acceptance) == pytest.approx(wanted)


def test_long_steps_reach_the_rate_of_speculation() -> None:
    """(1 - a^(k + 1)) / (1 - a) tokens a pass (Leviathan et al., 2023, equation 1)."""
    passes = passes_after(100_000, 4, 0.8)
    assert 100_000 / passes[-1] == pytest.approx((1 - 0.8**5) / 0.2, rel=1e-3)


def test_a_round_by_hand() -> None:
    """All guesses right: a rewrite is one pass. A quarter of the steps is rewritten."""
    setting = Setting(FAST, step_tokens=10)
    found, plain = (guessed_round(TRIPLE, setting, 0.75, 1.0), round_seconds(TRIPLE, setting, 0.75))
    assert (found.draft, found.score, found.catch_up) == (plain.draft, plain.score, plain.catch_up)
    assert (found.rewrite, plain.rewrite) == pytest.approx((0.25 * 1, 0.25 * 10))


def test_kept_steps_are_read_once_with_the_guesses() -> None:
    """Half of the steps are kept: 10 tokens to read, then 11 rows with a place each."""
    setting = Setting(SLOW, step_tokens=10)
    catch_up = round_seconds(TRIPLE, setting, 0.5).catch_up
    rewrite = guessed_rewrite(TRIPLE, setting, 0.5, 1.0).seconds
    assert catch_up + 0.5 * rewrite == pytest.approx(0.5 * (0.8 * 21 + 0.2 * 11))


def test_guesses_that_cost_more_than_they_save_are_left_out() -> None:
    setting = Setting(SLOW, step_tokens=10)  # every row costs
    assert guessed_round(TRIPLE, setting, 0.5, 0.1) == round_seconds(TRIPLE, setting, 0.5)
    assert guessed_round(TRIPLE, setting, 1.0, 0.9).rewrite == 0


def test_shares_are_checked() -> None:
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="guess_acceptance must be in"):
            guessed_rewrite(TRIPLE, Setting(FAST), 0.5, share)
        with pytest.raises(ValueError, match="acceptance must be in"):
            guessed_rewrite(TRIPLE, Setting(FAST), share, 0.5)
