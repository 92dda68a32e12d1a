"""The index: pages are found by their tokens and those in front, and only while they are true."""

from __future__ import annotations

import numpy as np

from rsd_engine.core.prefixes.index import PrefixIndex, first_digest, next_digest

ROOT = first_digest(0)
STAMPS = np.zeros(9, dtype=np.int32)


def filled() -> tuple[PrefixIndex, bytes, bytes]:
    """Page 5 has the ids 1 2 3, page 6 after it 4 5 6."""
    index = PrefixIndex()
    one = next_digest(ROOT, [1, 2, 3])
    two = next_digest(one, [4, 5, 6])
    index.add(5, 0, ROOT, [1, 2, 3], one)
    index.add(6, 0, one, [4, 5, 6], two)
    return index, one, two


def test_a_page_is_found_by_all_tokens_up_to_its_end() -> None:
    index, one, two = filled()
    assert index.full_page(one, STAMPS) == 5
    assert index.full_page(two, STAMPS) == 6
    assert index.full_page(next_digest(ROOT, [4, 5, 6]), STAMPS) is None
    assert index.full_page(next_digest(first_digest(1), [1, 2, 3]), STAMPS) is None


def test_the_same_ids_in_other_groups_are_another_page() -> None:
    assert next_digest(ROOT, [1, 2]) != next_digest(ROOT, [1, 2, 0])
    assert next_digest(ROOT, [1, 256]) != next_digest(ROOT, [256, 1])
    assert next_digest(next_digest(ROOT, [1]), [2]) != next_digest(ROOT, [1, 2])


def test_an_entry_is_dropped_when_its_page_was_taken_since() -> None:
    index, one, two = filled()
    taken = STAMPS.copy()
    taken[5] = 1
    assert index.full_page(one, taken) is None
    assert not index.holds(5, 0)
    assert index.full_page(two, taken) == 6
    assert index.best_page(ROOT, [1, 2, 3], taken) == (-1, 0)


def test_the_newest_page_with_the_same_first_id_counts() -> None:
    index, one, _ = filled()
    assert index.best_page(one, [4, 5, 9], STAMPS) == (6, 2)
    index.add(7, 0, one, [4, 8])
    assert index.best_page(one, [4, 5, 9], STAMPS) == (7, 1)
    assert index.best_page(one, [3, 5], STAMPS) == (-1, 0)
    assert index.best_page(one, [], STAMPS) == (-1, 0)


def test_a_page_has_one_entry() -> None:
    index, one, two = filled()
    index.add(6, 0, ROOT, [7])
    assert index.full_page(two, STAMPS) is None
    assert index.best_page(one, [4], STAMPS) == (-1, 0)
    assert index.best_page(ROOT, [7], STAMPS) == (6, 1)
    index.clear()
    assert not any(index.holds(page, 0) for page in range(9))
