"""A draw as one would write it at first, in float64: the oracle of every test that samples.

Filters one token at a time, then Gumbel-max over what is left. Only the random words are the
engine's; `tests/kernels/philox` has their known answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rsd_kernels.philox.twin import philox


@dataclass(frozen=True)
class Place:
    """What a draw is for."""

    seed: int
    sample: int
    num_steps: int
    position: int
    purpose: int  # 0: the draft's text, 1: the target's


@dataclass(frozen=True)
class Drawn:
    token: int
    gap: float  # by which it was ahead of the second; infinite without a second


def gumbel(place: Place, token: int) -> float:
    """-ln(-ln u): four ids share the words of a counter."""
    counter = (place.position, place.num_steps, token // 4 * 256 + place.purpose, place.sample)
    seed = place.seed % 2**64
    word = philox(counter, (seed % 2**32, seed // 2**32))[token % 4]
    return -math.log(-math.log((word + 0.5) / 2**32))


def gumbels(place: Place, count: int) -> np.ndarray:
    """`gumbel` of the first `count` ids, [count] float64."""
    ids, purpose = np.arange(count, dtype=np.uint64), int(place.purpose)
    counter: Any = (place.position, place.num_steps, ids // 4 * 256 + purpose, place.sample)
    seed = place.seed % 2**64
    words = philox(counter, (seed % 2**32, seed // 2**32))
    word: np.ndarray = np.choose(ids.astype(int) % 4, words)
    return -np.log(-np.log((word + 0.5) / 2**32))


def distribution(
    logits: Sequence[float],
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> list[float]:
    """The filters one token at a time: temperature, min-p, top-k, top-p."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    kept = [i for i, w in enumerate(weights) if w >= min_p]
    kept.sort(key=lambda i: -weights[i])
    if 0 < top_k < len(logits):
        kept = kept[:top_k]
    total, mass, nucleus = sum(weights[i] for i in kept), 0.0, set[int]()
    for i in kept:
        if mass / total >= top_p:
            break
        nucleus.add(i)
        mass += weights[i]
    return [weights[i] / mass if i in nucleus else 0.0 for i in range(len(logits))]


def draw(probabilities: Sequence[float], place: Place) -> Drawn:
    """The kept id with the largest ln p + noise."""
    sums = [
        (math.log(p) + gumbel(place, token), token) for token, p in enumerate(probabilities) if p
    ]
    (best, token), (second, _) = sorted([(-math.inf, -1), *sums])[-1:-3:-1]
    return Drawn(token, best - second)
