"""A reader's hold on its request: the request ends with the reader, in whatever way that ends."""

from __future__ import annotations

import weakref
from collections.abc import Callable


class Claim:
    """Aborts a request if it is collected before the result was taken.

    Args:
        request_id: the request.
        drop: aborts it and discards its events, at once.
        abandon: has it dropped soon. Garbage collection may call it in any thread, at any point,
            so it waits for nothing.
    """

    def __init__(
        self, request_id: str, drop: Callable[[str], None], abandon: Callable[[str], None]
    ) -> None:
        self.request_id = request_id
        self._drop = drop
        self._release = weakref.finalize(self, abandon, request_id)
        self._release.atexit = False  # nor later: then the libraries below us are half gone

    def end(self) -> None:
        """The reader has the result."""
        self._release.detach()

    def close(self) -> None:
        """Drops the request unless it has ended, and returns once it is gone."""
        if self._release.alive:
            self._drop(self.request_id)
            self._release.detach()

    def release(self) -> None:
        """Gives the request up unless it has ended, without waiting."""
        self._release()
