"""One request as an iterator over its decided steps, for plain code and for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NoReturn

from rsd_engine.engine.claim import Claim
from rsd_engine.engine.dispatcher import Dispatcher, StreamEvent
from rsd_engine.engine.home_process import refuse_to_copy
from rsd_engine.outputs import FinishedEvent, RequestOutput


class Stream:
    """The events of one request: iterate it once, with `for` or `async for`.

    Each event is a `StepEvent`, the last one a `FinishedEvent`. The request is queued from the
    start and ends with its reader: when the loop is left, when the task that reads is cancelled,
    when the stream is closed, or when nobody holds it any more.
    """

    def __init__(
        self, dispatcher: Dispatcher, claim: Claim, prompt_token_ids: tuple[int, ...]
    ) -> None:
        self.request_id = claim.request_id
        self.prompt_token_ids = prompt_token_ids  # as in its `RequestOutput`
        self._dispatcher = dispatcher
        self._claim = claim
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
        self._claim.close()

    def take(self) -> list[StreamEvent]:
        """The events that wait, for those who read several streams in turn; see `run`."""
        events = self._dispatcher.take(self.request_id)
        if events and isinstance(events[-1], FinishedEvent):
            self._output = events[-1].output
            self._claim.end()
        return events

    def run(self) -> None:
        """Runs the engine until something happened, unless an event of this stream waits."""
        self._dispatcher.pump(self.request_id)

    def __iter__(self) -> _Loop:
        return _Loop(self)

    def __aiter__(self) -> _Loop:
        return _Loop(self)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        refuse_to_copy("a Stream")

    def _waits(self) -> bool:
        """Whether an event is yet to come, and none is there."""
        return not (self._ready or self._closed or self._output)

    def _advance(self) -> None:
        """Takes the events that wait; if there are none, runs the core once."""
        self._ready.extend(self.take())
        if not self._ready:
            self.run()

    def _next(self) -> StreamEvent | None:
        """The event that is there; None once there are no more."""
        if self._closed or not self._ready:
            return None
        return self._ready.popleft()

    def _leave(self) -> None:
        """Aborts the request unless it has ended. It never waits, as finalizers must not."""
        self._closed = True
        self._claim.release()


class _Loop:
    """One `for` or `async for` over a stream, which ends with it.

    No generator: asyncio closes one that is left only if its event loop goes on.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __iter__(self) -> _Loop:
        return self

    def __aiter__(self) -> _Loop:
        return self

    def __next__(self) -> StreamEvent:
        stream = self._stream
        try:
            while stream._waits():
                stream._advance()
        except BaseException:  # Ctrl-C, or an error of the core
            stream.close()
            raise
        event = stream._next()
        if event is None:
            raise StopIteration
        return event

    async def __anext__(self) -> StreamEvent:
        stream = self._stream
        try:
            while stream._waits():
                # All of it in a thread: even looking for events waits for a running launch.
                await asyncio.to_thread(stream._advance)
        except BaseException:  # the task was cancelled, or an error of the core
            stream._leave()
            raise
        event = stream._next()
        if event is None:
            raise StopAsyncIteration
        return event

    def __del__(self) -> None:
        self._stream._leave()
