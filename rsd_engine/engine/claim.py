"""What a reader holds on its requests: they end with it, in whatever way it ends."""

from __future__ import annotations

import weakref
from collections.abc import Callable


class Claim:
    """Requests that one reader waits for. Those that still run when it is collected are aborted.

    Args:
        drop: aborts a request and discards its events, at once.
        abandon: has requests dropped soon. Garbage collection may call it in any thread, at any
            point, so it waits for nothing.

    Attributes:
        waiting: the requests whose result the reader has not taken, by id, with their positions.
    """

    def __init__(self, drop: Callable[[str], None], abandon: Callable[[list[str]], None]) -> None:
        self.waiting: dict[str, int] = {}
        self._drop = drop
        self._release = weakref.finalize(self, _give_up, self.waiting, abandon)
        self._release.atexit = False  # nor later: then the libraries below us are half gone

    def close(self) -> None:
        """Drops what is left, and returns once it is gone."""
        for request_id in list(self.waiting):
            self._drop(request_id)
            self.waiting.pop(request_id, None)

    def release(self) -> None:
        """Gives up what is left, without waiting for it to end."""
        self._release()


def _give_up(waiting: dict[str, int], abandon: Callable[[list[str]], None]) -> None:
    left = list(waiting)
    waiting.clear()
    if left:
        abandon(left)
