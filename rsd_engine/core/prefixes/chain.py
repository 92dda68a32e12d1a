"""Hashes of the beginning of one context, kept so that no token is hashed twice."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from rsd_engine.core.prefixes.index import first_digest, next_digest
from rsd_kernels.state.enums import Role


@dataclass
class Chain:
    """The full pages at the beginning of one role's context.

    Attributes:
        size: tokens of a page.
        digests: of what stands in front of each page, and behind the last one.
        ids: int32, in these pages.
        pages: of the slot that holds it, from the first one on, as far as they are in the index.
    """

    size: int
    digests: list[bytes]
    ids: array[int] = field(default_factory=lambda: array("i"))
    pages: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, role: Role, size: int) -> Chain:
        """Of a context of which nothing is known."""
        return cls(size, [first_digest(role)])

    def copy(self) -> Chain:
        """For another slot with the same context, which holds the same pages if it is a fork."""
        return Chain(self.size, self.digests[:], self.ids[:], self.pages[:])

    def extend(self, ids: np.ndarray, num_tokens: int) -> None:
        """Hashes the full pages of the context's first tokens, as far as they are new."""
        for start in range(len(self.ids), num_tokens - self.size + 1, self.size):
            page = ids[start : start + self.size].tolist()
            self.ids.extend(page)
            self.digests.append(next_digest(self.digests[-1], page))

    def first_change(self, ids: np.ndarray) -> int | None:
        """The first token that is another one in the context now, or missing; None: none is."""
        known = np.frombuffer(self.ids, dtype=np.int32) if self.ids else ids[:0]
        here = ids[: len(known)]
        changed = np.flatnonzero(here != known[: len(here)])
        same = int(changed[0]) if len(changed) else len(here)
        return None if same == len(known) else same

    def cut(self, num_pages: int) -> None:
        """Leaves the first pages."""
        del self.ids[num_pages * self.size :], self.digests[num_pages + 1 :], self.pages[num_pages:]

    def leave_pages(self, table: np.ndarray) -> None:
        """Of `pages` those leave, from the first one on, that the slot holds no more."""
        here = table[: len(self.pages)]
        gone = np.flatnonzero(here != np.array(self.pages[: len(here)], dtype=here.dtype))
        del self.pages[int(gone[0]) if len(gone) else len(here) :]
