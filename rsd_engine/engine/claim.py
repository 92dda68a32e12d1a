"""What a reader holds on its requests: they end with it, in whatever way it ends."""

from __future__ import annotations

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
        self._abandon = abandon

    def close(self) -> None:
        """Drops what is left, and returns once it is gone."""
        for request_id in list(self.waiting):
            self._drop(request_id)
            self.waiting.pop(request_id, None)

    def release(self) -> None:
        """Gives up what is left, without waiting for it to end."""
        left = list(self.waiting)
        self.waiting.clear()
        if left:
            self._abandon(left)

    def __del__(self) -> None:
        self.release()
