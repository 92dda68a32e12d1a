"""Hand requests to the core and its events back to whoever waits for them.

Callers may wait in several threads or asyncio tasks. Whoever needs an event next runs the core,
under one lock, and finds the others' events put by for them. Who adds or aborts goes first: a
launch that runs for somebody else ends after its tick. The core itself works in a thread of
its own, so that an interrupt (Ctrl-C) reaches the caller between two launches and never tears one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rsd_engine.core.events import Event, RequestDone
from rsd_engine.core.slots import SlotRequest
from rsd_engine.engine.build import EngineParts
from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.engine.results import RequestBuilder, SampleBuilder
from rsd_engine.outputs import FinishedEvent, Metrics, StepEvent
from rsd_engine.sampling_params import SamplingParams

StreamEvent = StepEvent | FinishedEvent


@dataclass(frozen=True)
class CheckedRequest:
    """A request that may be queued."""

    prompt: ResolvedPrompt
    params: SamplingParams
    seed: int
    slots: list[SlotRequest]  # one a sample


class Dispatcher:
    """The requests of one engine, by their ids."""

    def __init__(self, parts: EngineParts) -> None:
        self.metrics = Metrics()  # of finished requests; `seconds` is time in launches
        self._parts = parts
        self._core = parts.core
        self._lock = threading.RLock()
        self._door = threading.Lock()  # before the lock; who stands in it is the next to get it
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="rsd-core")
        self._step: Future[list[Event]] | None = None  # runs in the worker
        self._samples: dict[int, tuple[RequestBuilder, SampleBuilder]] = {}
        self._keys: dict[str, list[int]] = {}
        self._events: dict[str, deque[StreamEvent]] = {}
        self._num_keys = 0
        self._num_requests = 0

    def add_all(self, requests: list[CheckedRequest]) -> list[str]:
        """Queues requests, all before any can run; returns their ids."""
        with self._ahead():
            return [self._add(request) for request in requests]

    def pump(self, request_id: str) -> None:
        """One launch, unless another thread has brought an event of this request, or dropped it."""
        with self._door:
            self._lock.acquire()
        try:
            self._finish_step()
            if request_id not in self._events or self._events[request_id]:
                return
            self._run_step()
        finally:
            self._lock.release()

    def take(self, request_id: str) -> list[StreamEvent]:
        """The events that wait for this request, in order; the last one closes its queue."""
        with self._lock:
            queue = self._events.get(request_id)
            if queue is None:
                return []
            events = list(queue)
            queue.clear()
            if events and isinstance(events[-1], FinishedEvent):
                del self._events[request_id]
            return events

    def abort(self, request_id: str) -> None:
        """Ends a request at once; unknown or finished ones are left alone."""
        with self._ahead():
            for key in list(self._keys.get(request_id, ())):
                self._deliver(self._core.abort(key))

    def drop(self, request_id: str) -> None:
        """Aborts a request nobody waits for any more, and forgets its events."""
        with self._ahead():
            self.abort(request_id)
            self._events.pop(request_id, None)

    def close(self) -> None:
        """Aborts everything and ends the worker."""
        with self._ahead():
            try:
                for request_id in list(self._keys):
                    self.abort(request_id)
                self._core.close()
            finally:
                self._worker.shutdown()

    @contextmanager
    def _ahead(self) -> Iterator[None]:
        """The lock, ahead of those who would run the core once more."""
        if not self._lock.acquire(blocking=False):
            self._core.ask_to_return()
            with self._door:
                self._core.ask_to_return()  # who stood in the door may have launched since
                self._lock.acquire()
        try:
            self._finish_step()
            yield
        finally:
            self._lock.release()

    def _run_step(self) -> None:
        """One step in the worker. An interrupt leaves none behind that `_step` does not know of."""
        step: Future[list[Event]] = Future()
        try:
            self._step = step
            self._worker.submit(self._timed_step, step)
        except BaseException:
            if step.cancel():  # it has not begun, and will not
                self._step = None
            raise
        self._finish_step()

    def _finish_step(self) -> None:
        """Waits for the step that runs, if one does, and delivers its events.

        An interrupt ends the wait; whoever comes next waits again, so nobody meets a running core.
        """
        if self._step is None:
            return
        try:
            events = self._step.result()
        except KeyboardInterrupt:
            self._core.ask_to_return()
            raise
        except BaseException:
            self._step = None
            raise
        self._step = None
        self._deliver(events)

    def _timed_step(self, step: Future[list[Event]]) -> None:
        if not step.set_running_or_notify_cancel():
            return
        started = time.perf_counter()
        try:
            events = self._core.next_events()
        except BaseException as error:
            step.set_exception(error)
            return
        spent = time.perf_counter() - started
        self.metrics = replace(self.metrics, seconds=self.metrics.seconds + spent)
        step.set_result(events)

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, RequestDone):
                self._finish(event)
            else:
                _, sample = self._samples[event.key]
                self._publish(sample.request_id, sample.push(event))

    def _add(self, request: CheckedRequest) -> str:
        request_id = str(self._num_requests)
        self._num_requests += 1
        models, params = self._parts.models, request.params
        samples = [
            SampleBuilder(request_id, i, params, models.main.vocabulary, models.eos_ids)
            for i in range(params.n)
        ]
        builder = RequestBuilder(request_id, request.prompt, request.seed, samples)
        keys = list(range(self._num_keys, self._num_keys + params.n))
        self._num_keys += params.n
        for key, sample, slot in zip(keys, samples, request.slots, strict=True):
            self._samples[key] = (builder, sample)
            self._core.add(key, slot)
        self._keys[request_id] = keys
        self._events[request_id] = deque()
        return request_id

    def _finish(self, done: RequestDone) -> None:
        builder, sample = self._samples.pop(done.key)
        self._publish(sample.request_id, sample.close(done))
        if not builder.finished:
            return
        output = builder.output(self._parts.models.num_parameters)
        del self._keys[builder.request_id]
        self.metrics = self.metrics + replace(output.metrics, seconds=0.0)
        self._publish(builder.request_id, FinishedEvent(builder.request_id, output))

    def _publish(self, request_id: str, event: StreamEvent | None) -> None:
        if event is not None and request_id in self._events:
            self._events[request_id].append(event)
