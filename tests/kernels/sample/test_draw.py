"""Gumbel-max: the draws of an oracle in float64, their distribution, and how two of them agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from rsd_kernels.gumbel.twin import noise
from rsd_kernels.philox.twin import DrawKey
from rsd_kernels.sample.twin import draw, kept_scores, noisy_largest
from rsd_kernels.state.enums import Purpose
from tests import draw_oracle
from tests.draw_oracle import Place, distribution

TOY = 23


@dataclass(frozen=True)
class Filters:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


EVERYTHING = Filters()
FILTERS = {
    "none": EVERYTHING,
    "temperature": Filters(temperature=0.6),
    "top-k": Filters(top_k=7),
    "top-p": Filters(top_p=0.8),
    "min-p": Filters(min_p=0.1),
    "all": Filters(temperature=1.3, top_k=15, top_p=0.95, min_p=0.02),
}
Draw = Callable[[Tensor, DrawKey], int]
BOTH = pytest.mark.parametrize("draw_one", [draw, noisy_largest])


def logits_of(count: int, seed: int, spread: float = 1.5) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)) * spread


def scores_of(logits: Tensor, filters: Filters = EVERYTHING) -> Tensor:
    return kept_scores(logits, **asdict(filters))


def exact(logits: Tensor, filters: Filters) -> np.ndarray:
    """The probabilities by the oracle."""
    return np.array(distribution(logits.tolist(), **asdict(filters)))


def keys(count: int, purpose: Purpose = Purpose.TARGET_TOKEN, seed: int = 3) -> list[DrawKey]:
    """As they come in a run: many samples, steps and positions of one request."""
    parts = product(range(count // 200 + 1), range(10), range(20))
    return [DrawKey(seed, s, n, 20 * n + p, purpose) for s, n, p in parts][:count]


@BOTH
@pytest.mark.parametrize("count", [1, 3, 64, 65, 333])
def test_the_draws_of_the_oracle(count: int, draw_one: Draw) -> None:
    for i, key in enumerate(keys(20)):
        logits = logits_of(count, i)
        filters = list(FILTERS.values())[i % len(FILTERS)]
        place = Place(key.seed, key.sample, key.num_steps, key.position, key.purpose)
        wanted = draw_oracle.draw(exact(logits, filters).tolist(), place)
        assert wanted.gap > 1e-5  # else rounding decides
        assert draw_one(scores_of(logits, filters), key) == wanted.token


@BOTH
@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_the_distribution(filters: Filters, draw_one: Draw) -> None:
    logits = logits_of(TOY, 5)
    probabilities = exact(logits, filters)
    scores = scores_of(logits, filters)
    count = 6000 if draw_one is draw else 1000
    counts = np.bincount([draw_one(scores, key) for key in keys(count)], minlength=TOY)
    some = probabilities > 0
    assert not counts[~some].any()
    assert stats.chisquare(counts[some], probabilities[some] * count).pvalue > 0.001


@pytest.mark.parametrize("purpose", [Purpose.TARGET_TOKEN, Purpose.DRAFT_TOKEN])
def test_draws_of_two_purposes_are_independent(purpose: Purpose) -> None:
    """A table of draws of the draft against draws at the same places, by chi-square."""
    scores = scores_of(logits_of(6, 1, 0.5))
    table = np.zeros((6, 6))
    for key, other in zip(keys(4000, Purpose.DRAFT_TOKEN), keys(4000, purpose), strict=True):
        table[draw(scores, key), draw(scores, other)] += 1
    same = purpose == Purpose.DRAFT_TOKEN
    assert (stats.chi2_contingency(table).pvalue < 1e-9) == same
    assert (np.count_nonzero(table) == 6) == same


def agreement(p: np.ndarray, q: np.ndarray) -> float:
    """The share of draws with one noise that agree: sum_i 1 / sum_j max(p_j / p_i, q_j / q_i)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.flatnonzero((p > 0) & (q > 0))
        return float(sum(1 / np.maximum(p / p[i], q / q[i]).sum() for i in both))


@pytest.mark.parametrize("distance", [0.1, 0.5, 1.5, 4.0])
@pytest.mark.parametrize("filters", [EVERYTHING, Filters(0.7, 12, 0.9)])
def test_how_often_draws_with_one_noise_agree(distance: float, filters: Filters) -> None:
    """At least (1 - TV) / (1 + TV) (Daliri et al., 2024); no coupling does better than 1 - TV."""
    one = logits_of(TOY, 1)
    other = one + logits_of(TOY, 2, distance)
    p, q = exact(one, filters), exact(other, filters)
    far = np.abs(p - q).sum() / 2
    scores = [scores_of(x, filters) for x in (one, other)]
    count = 4000
    agreed = sum(draw(scores[0], key) == draw(scores[1], key) for key in keys(count)) / count
    wanted = agreement(p, q)
    assert (1 - far) / (1 + far) <= wanted <= 1 - far
    assert abs(agreed - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / count)


@BOTH
def test_filters_change_a_draw_only_if_they_remove_it(draw_one: Draw) -> None:
    logits = logits_of(500, 4, 3.0)
    for key in keys(30):
        token = draw_one(scores_of(logits), key)
        rank = int((logits > logits[token]).sum())
        assert draw_one(scores_of(logits, Filters(top_k=rank + 1)), key) == token
        if rank:
            assert draw_one(scores_of(logits, Filters(top_k=rank)), key) != token


@BOTH
def test_the_first_of_equals(draw_one: Draw) -> None:
    """A score that makes up for the noise of another id to the bit; the larger id is no better."""
    ties = set[bool]()
    for key in keys(60):
        ids = np.array([17, 250])
        luck = noise(key, ids)
        scores = torch.full((300,), -torch.inf)
        lucky = int(luck.argmax())
        scores[ids[lucky]] = float(luck[1 - lucky] - luck[lucky])
        scores[ids[1 - lucky]] = 0.0
        if scores[ids[lucky]].numpy() + luck[lucky] == luck[1 - lucky]:
            ties.add(bool(lucky))
            assert draw_one(scores, key) == 17
    assert ties == {False, True}
