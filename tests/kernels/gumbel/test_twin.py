"""Gumbel noise in fixed point: within rounding of the formula, monotone, never infinite."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rsd_kernels.gumbel.twin import MOST_NOISE, gumbel, noise
from rsd_kernels.philox.twin import DrawKey
from rsd_kernels.state.enums import Purpose
from tests import draw_oracle

# Both ends, the middle, and where float32 of a word rounds up to the next power of two.
EDGES = np.unique(
    np.concatenate(
        [
            (center + np.arange(-40, 41)) % 2**32
            for center in (0, 2**31, *(2**n for n in range(32)), *(2**32 - 2**n for n in range(32)))
        ]
    ).astype(np.uint64)
)


def exact(words: np.ndarray) -> np.ndarray:
    """The formula; float64 has the digits of u = (word + 1/2) / 2**32 and of 1 - u."""
    u, rest = (words + 0.5) / 2**32, (2**32 - 1 - words.astype(float) + 0.5) / 2**32
    return -np.log(np.where(u < 0.5, -np.log(u), -np.log1p(-rest)))


def test_the_formula() -> None:
    words = np.concatenate([EDGES, np.arange(0, 2**32, 99_991, dtype=np.uint64)])
    found, wanted = gumbel(words), exact(words)
    assert found.dtype == np.float32
    # 4e-7 of the logarithms, and half a unit in the last place of the result.
    assert (np.abs(found - wanted) < 4e-7 + np.spacing(np.abs(found)) / 2).all()


def test_it_never_falls_as_u_grows() -> None:
    words = np.unique(np.concatenate([EDGES, np.arange(0, 2**32, 9_973, dtype=np.uint64)]))
    assert (np.diff(gumbel(words)) >= 0).all()


def test_its_range() -> None:
    least, most = gumbel(np.array([0, 2**32 - 1], np.uint64)).tolist()
    assert least == pytest.approx(-np.log(33 * np.log(2)), abs=0.05)
    assert most == pytest.approx(33 * np.log(2), abs=1e-5)
    assert most - least < MOST_NOISE


def test_its_distribution() -> None:
    """Kolmogorov and Smirnov's test over ids, and over the positions of one id."""
    key = DrawKey(11, 0, 2, 5, Purpose.TARGET_TOKEN)
    of_ids = noise(key, np.arange(40_000))
    of_places = [
        noise(DrawKey(11, 0, 2, position, key.purpose), np.array([77]))[0]
        for position in range(2000)
    ]
    assert stats.kstest(of_ids, "gumbel_r").pvalue > 0.001
    assert stats.kstest(of_places, "gumbel_r").pvalue > 0.001


def test_noise_of_an_id_does_not_depend_on_the_others() -> None:
    key = DrawKey(2**63 - 1, 3, 2, 5, Purpose.DRAFT_TOKEN)
    place = draw_oracle.Place(key.seed, key.sample, key.num_steps, key.position, key.purpose)
    ids = np.array([9, 8, 151_000, 0, 9, 3])
    wanted = [draw_oracle.gumbel(place, int(token)) for token in ids]
    assert noise(key, ids).tolist() == pytest.approx(wanted, abs=1e-6)
    assert draw_oracle.gumbels(place, 151_001)[ids].tolist() == pytest.approx(wanted, abs=1e-12)
    assert [noise(key, ids[i : i + 1])[0] for i in range(len(ids))] == noise(key, ids).tolist()


BASE = DrawKey(4, 0, 1, 8, Purpose.DRAFT_TOKEN)
OTHERS = {
    "seed": DrawKey(5, 0, 1, 8, Purpose.DRAFT_TOKEN),
    "sample": DrawKey(4, 1, 1, 8, Purpose.DRAFT_TOKEN),
    "steps": DrawKey(4, 0, 2, 8, Purpose.DRAFT_TOKEN),
    "position": DrawKey(4, 0, 1, 9, Purpose.DRAFT_TOKEN),
    "purpose": DrawKey(4, 0, 1, 8, Purpose.TARGET_TOKEN),
}


@pytest.mark.parametrize("other", [*OTHERS.values(), BASE], ids=[*OTHERS, "id"])
def test_draws_of_different_keys_are_independent(other: DrawKey) -> None:
    """No correlation of ranks between keys that differ in one part, or between ids of one key."""
    ids = np.arange(20_000)
    shifted = ids + 1 if other == BASE else ids
    assert stats.spearmanr(noise(BASE, ids), noise(other, shifted)).pvalue > 0.001
