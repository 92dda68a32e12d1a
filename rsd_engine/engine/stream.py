"""One request as an iterator over its decided steps, for plain code and for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator

from rsd_engine.engine.dispatcher import Dispatcher, StreamEvent
from rsd_engine.outputs import FinishedEvent, RequestOutput


class Stream:
    """The events of one request: iterate it once, with `for` or `async for`.

    Each event is a `StepEvent`, the last one a `FinishedEvent`. Leaving the loop early aborts the
    request. The request is queued from the start, so close a stream that you will not iterate.
    """

    def __init__(self, dispatcher: Dispatcher, request_id: str) -> None:
        self.request_id = request_id
        self._dispatcher = dispatcher
        self._ready: deque[StreamEvent] = deque()
        self._output: RequestOutput | None = None
        self._closed = False

    @property
    def output(self) -> RequestOutput | None:
        """The result, once the stream has ended; None before."""
        return self._output

    def close(self) -> None:
        """Aborts the request unless it has ended. A closed stream yields no more events."""
        self._closed = True
        if self._output is None:
            self._dispatcher.drop(self.request_id)

    def take(self) -> list[StreamEvent]:
        """The events that wait, for those who iterate several streams; see `run`."""
        return self._dispatcher.take(self.request_id)

    def run(self) -> None:
        """Runs the engine until something happened, unless an event of this stream waits."""
        self._dispatcher.pump(self.request_id)

    def __iter__(self) -> Iterator[StreamEvent]:
        try:
            while not self._closed and self._output is None:
                self._advance()
                while self._ready:
                    yield self._next()
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        try:
            while not self._closed and self._output is None:
                # All of it in a thread: even looking for events waits for a running launch.
                await asyncio.to_thread(self._advance)
                while self._ready:
                    yield self._next()
        finally:
            self.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _advance(self) -> None:
        """Takes the events that wait; if there are none, runs the core once."""
        self._ready.extend(self.take())
        if not self._ready:
            self.run()

    def _next(self) -> StreamEvent:
        event = self._ready.popleft()
        if isinstance(event, FinishedEvent):
            self._output = event.output
        return event
