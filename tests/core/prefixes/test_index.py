"""The index: pages are found by their tokens and those in front, and only while they are true."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

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


def test_the_page_with_most_of_the_tokens_is_found() -> None:
    index, one, _ = filled()
    assert index.best_page(one, [4, 5, 9], STAMPS) == (6, 2)
    index.add(7, 0, one, [4, 8])
    index.add(8, 0, one, [4, 5, 9, 9])
    assert index.best_page(one, [4, 5, 9], STAMPS) == (8, 3)
    assert index.best_page(one, [4, 8, 8], STAMPS) == (7, 2)
    assert index.best_page(one, [3, 5], STAMPS) == (-1, 0)
    assert index.best_page(one, [], STAMPS) == (-1, 0)
    taken = STAMPS.copy()
    taken[[7, 8]] = 1
    assert index.best_page(one, [4, 5, 9], taken) == (6, 2)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=8), st.data())
def test_no_page_has_more_of_them(pages: list[list[int]], data: st.DataObject) -> None:
    index, stamps = PrefixIndex(), np.zeros(len(pages), dtype=np.int32)
    for page, ids in enumerate(pages):
        index.add(page, 0, ROOT, ids)
    stamps[data.draw(st.lists(st.integers(0, len(pages) - 1), max_size=3)) if pages else []] = 1
    wanted = data.draw(st.lists(st.integers(0, 2), max_size=5))
    common = [
        max(n for n in range(6) if wanted[:n] == ids[:n] and n <= min(len(wanted), len(ids)))
        for i, ids in enumerate(pages)
        if not stamps[i]
    ]
    page, same = index.best_page(ROOT, wanted, stamps)
    assert same == max(common, default=0)
    if same:
        assert pages[page][:same] == wanted[:same] and not stamps[page]


def test_a_page_has_one_entry() -> None:
    index, one, two = filled()
    index.add(6, 0, ROOT, [7])
    assert index.full_page(two, STAMPS) is None
    assert index.best_page(one, [4], STAMPS) == (-1, 0)
    assert index.best_page(ROOT, [7], STAMPS) == (6, 1)
    index.clear()
    assert not any(index.holds(page, 0) for page in range(9))
