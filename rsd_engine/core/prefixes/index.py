"""Finds pages again by the tokens whose K and V they hold, and by all tokens before these.

A full page is named by the hash of the page before it and of its own ids: a chain that begins with
the role. The index cannot see that a page was taken from the stack and overwritten, so it notes the
page's stamp, which grows with that, and an entry with another stamp is dropped where it is met.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

DIGEST_BYTES = 16  # so many that two pages never have the same by chance


def first_digest(role: int) -> bytes:
    """What stands for the page before the first one."""
    return blake2b(b"role %d" % role, digest_size=DIGEST_BYTES).digest()


def next_digest(parent: bytes, ids: Sequence[int]) -> bytes:
    """Of a page: its ids and, by the digest of the page before, all those in front of them."""
    return blake2b(parent + array("q", ids).tobytes(), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True)
class _Entry:
    stamp: int
    parent: bytes  # of the page before
    ids: tuple[int, ...]
    digest: bytes | None  # None: the page is not full


class PrefixIndex:
    """A page has at most one entry, a digest at most one page. `stamps` are those of all pages."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}  # by page
        self._full: dict[bytes, int] = {}
        # By parent, sorted: of ids, one of the neighbours shares the longest beginning.
        self._followers: defaultdict[bytes, list[tuple[tuple[int, ...], int]]] = defaultdict(list)

    def add(
        self, page: int, stamp: int, parent: bytes, ids: Sequence[int], digest: bytes | None = None
    ) -> None:
        """Enters a page; `digest` is its own if it is full."""
        self.drop(page)
        entry = self._entries[page] = _Entry(stamp, parent, tuple(ids), digest)
        insort(self._followers[parent], (entry.ids, page))
        if digest is not None:
            self._full[digest] = page

    def drop(self, page: int) -> None:
        """Forgets what is in a page."""
        entry = self._entries.pop(page, None)
        if entry is None:
            return
        followers = self._followers[entry.parent]
        del followers[bisect_left(followers, (entry.ids, page))]
        if not followers:
            del self._followers[entry.parent]
        if entry.digest is not None and self._full.get(entry.digest) == page:
            del self._full[entry.digest]

    def clear(self) -> None:
        """Forgets all pages."""
        self._entries.clear()
        self._full.clear()
        self._followers.clear()

    def holds(self, page: int, stamp: int) -> bool:
        """Whether the page, with this stamp, can be found."""
        entry = self._entries.get(page)
        return entry is not None and entry.stamp == stamp

    def full_page(self, digest: bytes, stamps: np.ndarray) -> int | None:
        """The page with this digest."""
        return self._current(self._full.get(digest), stamps)

    def best_page(self, parent: bytes, ids: Sequence[int], stamps: np.ndarray) -> tuple[int, int]:
        """The page that has most of `ids` at its beginning, and how many; (-1, 0) if none has any.

        Args:
            parent: digest of the page before.
            ids: that are looked for.
            stamps: of all pages.
        """
        while True:
            followers = self._followers.get(parent, [])
            at = bisect_left(followers, (tuple(ids),))
            near = [(_same(ids, found), page) for found, page in followers[max(at - 1, 0) : at + 1]]
            same, page = max(near, default=(0, -1))
            if not same:
                return -1, 0
            if self._current(page, stamps) is not None:
                return page, same

    def _current(self, page: int | None, stamps: np.ndarray) -> int | None:
        if page is not None and self._entries[page].stamp != stamps[page]:
            self.drop(page)
            return None
        return page


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids they have in common at the beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
