"""Finds pages again by the tokens whose K and V they hold, and by all tokens before these.

A full page is named by the hash of the page before it and of its own ids: a chain that begins with
the role. The index cannot see that a page was taken from the stack and overwritten, so it notes the
page's stamp, which grows with that, and an entry with another stamp is dropped where it is met.
"""

from __future__ import annotations

from array import array
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
        self._newest: dict[tuple[bytes, int], int] = {}  # by parent and first id

    def add(
        self, page: int, stamp: int, parent: bytes, ids: Sequence[int], digest: bytes | None = None
    ) -> None:
        """Enters a page; `digest` is its own if it is full."""
        self.drop(page)
        self._entries[page] = _Entry(stamp, parent, tuple(ids), digest)
        self._newest[parent, ids[0]] = page
        if digest is not None:
            self._full[digest] = page

    def drop(self, page: int) -> None:
        """Forgets what is in a page."""
        entry = self._entries.pop(page, None)
        if entry is None:
            return
        if self._newest.get((entry.parent, entry.ids[0])) == page:
            del self._newest[entry.parent, entry.ids[0]]
        if entry.digest is not None and self._full.get(entry.digest) == page:
            del self._full[entry.digest]

    def clear(self) -> None:
        """Forgets all pages."""
        for found in (self._entries, self._full, self._newest):
            found.clear()

    def holds(self, page: int, stamp: int) -> bool:
        """Whether the page, with this stamp, can be found."""
        entry = self._entries.get(page)
        return entry is not None and entry.stamp == stamp

    def full_page(self, digest: bytes, stamps: np.ndarray) -> int | None:
        """The page with this digest."""
        return self._current(self._full.get(digest), stamps)

    def best_page(self, parent: bytes, ids: Sequence[int], stamps: np.ndarray) -> tuple[int, int]:
        """A page that begins with some of `ids`, and with how many; the newest of several.

        Args:
            parent: digest of the page before.
            ids: that are looked for.
            stamps: of all pages.
        """
        page = self._current(self._newest.get((parent, ids[0])), stamps) if len(ids) else None
        if page is None:
            return -1, 0
        same = 0
        for wanted, found in zip(ids, self._entries[page].ids, strict=False):
            if wanted != found:
                break
            same += 1
        return page, same

    def _current(self, page: int | None, stamps: np.ndarray) -> int | None:
        if page is not None and self._entries[page].stamp != stamps[page]:
            self.drop(page)
            return None
        return page
