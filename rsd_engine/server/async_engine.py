"""One engine for many asyncio tasks: a thread runs it for all of them.

Each task waits on a queue of its own, so a thousand open requests need no thousand threads, and a
slow reader holds up nobody.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rsd_engine.engine.chat.conversation import Message
from rsd_engine.engine.dispatcher import StreamEvent
from rsd_engine.engine.engine import Engine
from rsd_engine.engine.prompts import Prompt
from rsd_engine.engine.stream import Stream
from rsd_engine.outputs import FinishedEvent, RequestOutput
from rsd_engine.sampling_params import SamplingParams

logger = logging.getLogger("rsd_engine")

_PAGE_SECONDS = 1.0
_CALLERS = 4  # threads that queue and abort requests while the engine runs


class AsyncRequest:
    """The events of one request: iterate it once, with `async for`.

    Leaving the loop early, also because the task is cancelled, aborts the request; so does
    `close`.

    Raises:
        RuntimeError: while iterating: the engine failed.
    """

    def __init__(self, owner: AsyncEngine, stream: Stream) -> None:
        self.stream = stream
        self.output: RequestOutput | None = None
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[StreamEvent | BaseException] = asyncio.Queue()

    @property
    def request_id(self) -> str:
        return self.stream.request_id

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
        try:
            while self.output is None:
                event = await self._events.get()
                if isinstance(event, BaseException):
                    raise RuntimeError(f"the engine failed: {event}") from event
                if isinstance(event, FinishedEvent):
                    self.output = event.output
                yield event
        finally:
            self.close()

    def deliver(self, events: Sequence[StreamEvent | BaseException]) -> None:
        """Hands over events, from any thread."""
        try:
            for event in events:
                self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the event loop has closed, and its tasks with it
            self.close()


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
        by_token: bool = True,
    ) -> list[AsyncRequest]:
        """Queues requests, all of them or none; see `Engine.streams`.

        Raises:
            ValueError: a prompt or its parameters are not allowed.
        """
        call = self._callers.submit(self.engine.streams, prompts, params, by_token=by_token)
        try:
            streams = await asyncio.wrap_future(call)
        except asyncio.CancelledError:
            call.add_done_callback(_close_streams)
            raise
        requests = [AsyncRequest(self, stream) for stream in streams]
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine for asyncio is closed; make a new one")
            self._open.update({request.request_id: request for request in requests})
            self._changed.notify()
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
        self._callers.submit(request.stream.close)

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
            for request in running:
                self._hand_out(request)
            self._look_at_pages()
        except Exception as error:
            self._fail(running, error)

    def _hand_out(self, request: AsyncRequest) -> None:
        events = request.stream.take()
        if events and isinstance(events[-1], FinishedEvent):
            with self._changed:
                self._open.pop(request.request_id, None)
        if events:
            request.deliver(events)

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
        for request in running:
            with self._changed:
                self._open.pop(request.request_id, None)
            request.deliver([error])


def _close_streams(call: Future[list[Stream]]) -> None:
    """Of a task that was cancelled while its requests were being queued."""
    if not call.cancelled() and call.exception() is None:
        for stream in call.result():
            stream.close()
