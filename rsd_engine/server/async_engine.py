"""One engine for many asyncio tasks: a thread runs it for all of them.

Each request has a queue of its own, so a thousand open requests need no thousand threads, and a
slow reader holds up nobody. Event loop and engine share one interpreter: the loop is woken once for
all that a turn of the engine has brought, and not for what nobody reads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from rsd_engine.engine.chat.conversation import Message
from rsd_engine.engine.dispatcher import StreamEvent
from rsd_engine.engine.engine import Engine
from rsd_engine.engine.prompts import Prompt
from rsd_engine.engine.stream import Stream
from rsd_engine.outputs import FinishedEvent, RequestOutput, StepEvent
from rsd_engine.sampling_params import SamplingParams

logger = logging.getLogger("rsd_engine")

_PAGE_SECONDS = 1.0
_CALLERS = 4  # threads that queue and abort requests while the engine runs


class AsyncRequest:
    """The events of one request: iterate it once, with `async for`.

    Leaving the loop early, also because the task is cancelled, aborts the request; so does
    `close`.

    Args:
        owner: the engine that runs it.
        stream: the request.
        bell: rung in the event loop of the reader when events have come.
        tells_steps: whether the reader wants more than the end.

    Attributes:
        output: the result, once the reader has come to it.
        first_text_at: when the first text was kept, by `time.perf_counter`.

    Raises:
        RuntimeError: while iterating: the engine failed.
    """

    def __init__(
        self, owner: AsyncEngine, stream: Stream, bell: asyncio.Event, *, tells_steps: bool
    ) -> None:
        self.stream = stream
        self.bell = bell
        self.loop = asyncio.get_running_loop()
        self.output: RequestOutput | None = None
        self.first_text_at: float | None = None
        self._owner = owner
        self._tells_steps = tells_steps
        self._events: deque[StreamEvent | BaseException] = deque()

    @property
    def request_id(self) -> str:
        return self.stream.request_id

    @property
    def has_events(self) -> bool:
        """Whether `next_event` has one."""
        return bool(self._events)

    def close(self) -> None:
        """Aborts the request unless it has ended; returns at once."""
        self._owner.drop(self)

    async def result(self) -> RequestOutput:
        """The result, once the request has ended.

        Raises:
            RuntimeError: the engine failed.
        """
        async for _ in self:
            continue
        assert self.output is not None
        return self.output

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        async with aclosing(merged([self])) as events:
            async for _, event in events:
                yield event

    def next_event(self) -> StreamEvent:
        """Takes the first event that waits.

        Raises:
            RuntimeError: the engine failed.
        """
        event = self._events.popleft()
        if isinstance(event, BaseException):
            raise RuntimeError(f"the engine failed: {event}") from event
        if isinstance(event, FinishedEvent):
            self.output = event.output
        return event

    def take(self) -> Sequence[StreamEvent]:
        """In the engine's thread: what the reader is to be told of what has happened."""
        events = self.stream.take()
        if self.first_text_at is None and any(map(_is_kept, events)):
            self.first_text_at = time.perf_counter()
        return events if self._tells_steps else [e for e in events if isinstance(e, FinishedEvent)]

    def deliver(self, events: Sequence[StreamEvent | BaseException]) -> None:
        """In the reader's event loop: hands over events."""
        self._events.extend(events)
        self.bell.set()


async def merged(
    requests: Sequence[AsyncRequest],
) -> AsyncGenerator[tuple[int, StreamEvent], None]:
    """(which request, event) as they come, of requests that were submitted together.

    Leaving it aborts what still runs.

    Raises:
        RuntimeError: the engine failed.
    """
    left = dict(enumerate(requests))
    try:
        while left:
            for index, request in list(left.items()):
                while request.has_events:
                    yield index, request.next_event()
                if request.output is not None:
                    del left[index]
            if left and not any(request.has_events for request in left.values()):
                bell = requests[0].bell
                bell.clear()
                await bell.wait()
    finally:
        for request in left.values():
            request.close()


class AsyncEngine:
    """Runs an engine for asyncio. It does not own the engine: close both, this one first.

    >>> requests = await async_engine.submit(["2 + 3 ="], SamplingParams(max_tokens=8))
    >>> async for event in requests[0]: ...

    Args:
        engine: nobody else should use it meanwhile, though several threads may.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failure: BaseException | None = None  # of the engine as a whole
        self.page_share = 0.0  # of the KV pages that were held a second ago, or less
        self._looked_at_pages = 0.0
        self._open: dict[str, AsyncRequest] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._callers = ThreadPoolExecutor(_CALLERS, thread_name_prefix="rsd-callers")
        self._pump = threading.Thread(target=self._run, name="rsd-pump", daemon=True)
        self._pump.start()

    async def submit(
        self,
        prompts: Sequence[Prompt | Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: bool = True,
    ) -> list[AsyncRequest]:
        """Queues requests, all of them or none.

        Args:
            prompts: as in `Engine.as_completed`.
            params: as in `Engine.generate`.
            stream: whether steps and tokens are told as they come; otherwise the end alone is.

        Raises:
            ValueError: a prompt or its parameters are not allowed.
        """
        call = self._callers.submit(self.engine.streams, prompts, params, by_token=stream)
        try:
            streams = await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            call.add_done_callback(_close_streams)
            raise
        bell = asyncio.Event()
        requests = [AsyncRequest(self, s, bell, tells_steps=stream) for s in streams]
        with self._changed:
            closed = self._closed
            if not closed:
                self._open.update({request.request_id: request for request in requests})
                self._changed.notify()
        if closed:
            _close_streams(call)
            raise RuntimeError("the engine for asyncio is closed; make a new one")
        return requests

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    def drop(self, request: AsyncRequest) -> None:
        """Aborts a request unless it has ended; returns at once."""
        with self._changed:
            if self._open.pop(request.request_id, None) is None or self._closed:
                return
        self._callers.submit(self._close, request.stream)

    def abort_all(self) -> None:
        """Ends all requests; each reader gets a result with what was kept."""
        with self._changed:
            running = list(self._open)
        for request_id in running:
            self._callers.submit(self.engine.abort, request_id)

    def close(self) -> None:
        """Aborts everything and ends the threads; the engine stays usable."""
        with self._changed:
            left, self._open, self._closed = list(self._open.values()), {}, True
            self._changed.notify()
        for request in left:
            request.stream.close()
        self._pump.join()
        self._callers.shutdown()

    def _run(self) -> None:
        """In the thread: runs the engine while requests are open, and hands out their events."""
        while self._wait_for_work():
            self._turn()

    def _wait_for_work(self) -> bool:
        """Whether there is any; False at the end. It holds no request while it waits."""
        with self._changed:
            while not self._open and not self._closed:
                self._changed.wait()
            return not self._closed

    def _turn(self) -> None:
        with self._changed:
            running = list(self._open.values())
        if not running:
            return
        try:
            running[0].stream.run()
            told = [(request, self._take(request)) for request in running]
            self._look_at_pages()
        except Exception as error:
            self._fail(running, error)
        else:
            _deliver([(request, events) for request, events in told if events])

    def _take(self, request: AsyncRequest) -> Sequence[StreamEvent]:
        events = request.take()
        if events and isinstance(events[-1], FinishedEvent):
            with self._changed:
                self._open.pop(request.request_id, None)
        return events

    def _close(self, stream: Stream) -> None:
        """In a thread of the callers: aborts a request; an idle engine has no turn to look."""
        stream.close()
        self._look_at_pages()

    def _look_at_pages(self) -> None:
        """Now and then: on a GPU to ask is to wait for the device."""
        core, now = self.engine.parts.core, time.monotonic()
        if core.in_flight or (self._open and now < self._looked_at_pages + _PAGE_SECONDS):
            return
        self._looked_at_pages = now
        state = core.state
        self.page_share = 1 - int(state.num_free) / state.free_pages.shape[0]

    def _fail(self, running: list[AsyncRequest], error: Exception) -> None:
        if not self._closed:
            logger.error("the engine failed", exc_info=error)
            self.failure = error
        with self._changed:
            for request in running:
                self._open.pop(request.request_id, None)
        _deliver([(request, [error]) for request in running])


def _is_kept(event: StreamEvent) -> bool:
    return isinstance(event, StepEvent) and event.kind == "kept"


def _deliver(told: Sequence[tuple[AsyncRequest, Sequence[StreamEvent | BaseException]]]) -> None:
    """Hands all events of a turn to their readers: an event loop is woken once for all of its."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[Any]] = defaultdict(list)
    for request, events in told:
        by_loop[request.loop].append((request, events))
    for loop, batch in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver_here, batch)
        except RuntimeError:  # the event loop has closed, and its tasks with it
            for request, _ in batch:
                request.close()


def _deliver_here(batch: Sequence[tuple[AsyncRequest, Sequence[StreamEvent]]]) -> None:
    for request, events in batch:
        request.deliver(events)


def _close_streams(call: Future[list[Stream]]) -> None:
    """Of requests that nobody will read: their task or their engine went as they were queued."""
    if not call.cancelled() and call.exception() is None:
        for stream in call.result():
            stream.close()
