"""Hands requests to the core, and its events to the callers that wait for them.

Callers may wait in several threads or asyncio tasks. Whoever needs an event runs the core, under
one lock, and queues the events of the others for them. Callers that add or abort go first: a launch
that is running for another caller ends after its tick. The core works in a thread of its own, so
Ctrl-C reaches the caller between two launches and never breaks into one.

A reader that is collected as garbage cannot wait for a lock: its thread may hold it. It leaves its
requests in a list, from which whoever holds the lock next drops them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from rsd_engine.core.events import Event, PromptRead, RequestDone, StepDecided
from rsd_engine.core.slots import SlotRequest
from rsd_engine.core.solution_rewards import SolutionRewards
from rsd_engine.engine.build import EngineParts
from rsd_engine.engine.claim import Claim
from rsd_engine.engine.home_process import HomeProcess
from rsd_engine.engine.prompts import ResolvedPrompt
from rsd_engine.engine.results.request import RequestBuilder
from rsd_engine.engine.results.sample import SampleBuilder
from rsd_engine.engine.reward_watch import RewardWatch
from rsd_engine.outputs import FinishedEvent, Metrics, RequestOutput, StepEvent
from rsd_engine.sampling_params import SamplingParams

StreamEvent = StepEvent | FinishedEvent


@dataclass(frozen=True)
class CheckedRequest:
    """A request that has passed every check."""

    prompt: ResolvedPrompt
    params: SamplingParams
    seed: int
    slots: list[SlotRequest]  # one per sample


class Dispatcher:
    """The requests of one engine, by their ids; to be used in the engine's process only."""

    def __init__(self, parts: EngineParts, home: HomeProcess) -> None:
        self.metrics = Metrics()  # of finished requests; `seconds` is time in launches
        self._reward_watch = RewardWatch()
        self._parts = parts
        self._core = parts.core
        self._home = home
        self._lock = threading.RLock()
        self._door = threading.Lock()  # taken before the lock; its holder gets the lock next
        self._busy = False  # whether a holder of the lock is at work
        self._abandoned: deque[str] = deque()  # added to without the lock, taken from under it
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="rsd-core")
        self._in_core: Future[list[Event]] | None = None  # the call that the worker is running
        self._samples: dict[int, tuple[RequestBuilder, SampleBuilder]] = {}
        self._keys: dict[str, list[int]] = {}
        self._events: dict[str, deque[StreamEvent]] = {}
        self._num_keys = 0
        self._num_requests = 0

    def add_all(self, requests: list[CheckedRequest]) -> list[Claim]:
        """Queues requests, all of them before one can run; each ends with the claim on it."""
        with self._ahead():
            return [Claim(self._add(request), self.drop, self._abandon) for request in requests]

    def pump(self, request_id: str) -> None:
        """Runs the core once, unless this request was dropped or already has an event waiting."""
        self._home.check()
        with self._locked(self._queue_up):
            waiting = self._events.get(request_id)
            if waiting is None or waiting:
                return
            self._run_core()

    def take(self, request_id: str) -> list[StreamEvent]:
        """Takes the events that wait for this request, in order; the last one ends its queue.

        It needs no lock: the core may be running for others, or wait for a server.
        """
        self._home.check()
        queue, events = self._events.get(request_id), list[StreamEvent]()
        while queue:
            events.append(queue.popleft())
        if events and isinstance(events[-1], FinishedEvent):
            self._events.pop(request_id, None)
        return events

    def outputs(self, claims: list[Claim]) -> Iterator[tuple[int, RequestOutput]]:
        """Yields (position, result) as requests finish; those left end with the iterator."""
        waiting = dict(enumerate(claims))
        try:
            while waiting:
                for position, claim in list(waiting.items()):
                    for event in self.take(claim.request_id):
                        if isinstance(event, FinishedEvent):
                            waiting.pop(position).end()
                            yield position, event.output
                if waiting:
                    self.pump(next(iter(waiting.values())).request_id)
        except (Exception, KeyboardInterrupt):  # not GeneratorExit: a finalizer must not wait
            for claim in waiting.values():
                claim.close()
            raise

    def abort(self, request_id: str) -> None:
        """Ends a request at once; does nothing if it has finished or is unknown."""
        with self._ahead():
            self._abort(request_id)

    def check_integrity(self) -> list[str]:
        """What is wrong with the core's state, between two launches."""
        with self._ahead():
            return self._core.check_integrity()

    def reset_prefix_cache(self) -> None:
        """Nothing that was read until now is found again."""
        with self._ahead():
            self._core.prefixes.reset()

    def drop(self, request_id: str) -> None:
        """Aborts a request that nobody waits for any more, and discards its events."""
        if not self._home.is_here:
            return  # a fork has no requests, only a copy of their names
        with self._ahead():
            self._drop(request_id)

    def read_solutions(self, work: SolutionRewards) -> None:
        """Reads all of them in the core's thread, some between each two launches.

        While there are too few free pages for one, the loop goes on and starts no request.
        """
        waits = False
        try:
            while not work.is_done:
                with self._ahead():
                    self._run_core(partial(self._core.run_between, work.read_some))
                    if waits != work.lacks_pages:
                        waits = work.lacks_pages
                        self._core.num_waiting += 1 if waits else -1
                if waits:
                    self._run_requests()
        finally:
            if waits:
                with self._ahead():
                    self._core.num_waiting -= 1

    def _run_requests(self) -> None:
        """Runs the core once, for whoever waits for its events."""
        with self._locked(self._queue_up):
            if self._core.has_work:
                self._run_core()

    def close(self) -> None:
        """Aborts everything and ends the worker."""
        with self._ahead():
            try:
                for request_id in list(self._keys):
                    self._abort(request_id)
                self._core.close()
            finally:
                self._worker.shutdown()

    def _ahead(self) -> AbstractContextManager[None]:
        """Holds the lock ahead of callers that would only run the core once more."""
        self._home.check()
        return self._locked(self._push_ahead)

    def _queue_up(self) -> None:
        with self._door:
            self._lock.acquire()

    def _push_ahead(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._core.ask_to_return()
            with self._door:
                self._core.ask_to_return()  # the last holder of the door may have launched since
                self._lock.acquire()

    @contextmanager
    def _locked(self, acquire: Callable[[], object]) -> Iterator[None]:
        """Holds the lock, which `acquire` takes; meanwhile the core rests."""
        acquire()
        try:
            with self._at_work():
                yield
        finally:
            self._lock.release()
        if self._abandoned:  # since this holder looked last
            self._drop_if_free()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """For the holder of the lock: keeps finalizers out, and does what they leave."""
        busy, self._busy = self._busy, True
        try:
            self._wait_for_core()
            self._drop_abandoned()
            yield
            self._drop_abandoned()
        finally:
            self._busy = busy

    def _abandon(self, request_id: str) -> None:
        """Has a request dropped whose reader is gone. It waits for nothing.

        A finalizer calls it in any thread, also in the core's and in one that holds the lock.
        """
        if not self._home.is_here:
            return
        self._abandoned.append(request_id)
        self._core.ask_to_return()
        self._drop_if_free()

    def _drop_if_free(self) -> None:
        """Drops what was abandoned, unless the lock has a holder, who does it before it lets go."""
        if self._busy or not self._lock.acquire(blocking=False):
            return
        try:
            if self._in_core is None:  # otherwise an interrupted caller left the core running
                with self._at_work():
                    pass
        finally:
            self._lock.release()

    def _drop_abandoned(self) -> None:
        while self._abandoned:
            self._drop(self._abandoned.popleft())

    def _abort(self, request_id: str) -> None:
        for key in list(self._keys.get(request_id, ())):
            self._deliver(self._core.abort(key))

    def _drop(self, request_id: str) -> None:
        self._abort(request_id)
        self._events.pop(request_id, None)

    def _run_core(self, run: Callable[[], list[Event]] | None = None) -> None:
        """Runs the core once in the worker, and delivers its events.

        The future is stored before it is submitted: an interrupt leaves no unknown call behind.
        """
        call: Future[list[Event]] = Future()
        try:
            self._in_core = call
            self._worker.submit(self._call_core, call, run or self._next_events)
        except BaseException:
            if call.cancel():  # it has not begun, and will not
                self._in_core = None
            raise
        self._wait_for_core()

    def _wait_for_core(self) -> None:
        """Waits until the core is not running, and delivers its events.

        An interrupt ends the wait; the next caller waits again, so none finds the core running.
        """
        if self._in_core is None:
            return
        try:
            events = self._in_core.result()
        except KeyboardInterrupt:
            self._core.ask_to_return()
            raise
        except BaseException:
            self._in_core = None
            raise
        self._in_core = None
        self._deliver(events)

    def _call_core(self, call: Future[list[Event]], run: Callable[[], list[Event]]) -> None:
        """In the worker: the events of the core, or its error, become the result of `call`."""
        if not call.set_running_or_notify_cancel():
            return
        try:
            call.set_result(run())
        except BaseException as error:
            call.set_exception(error)

    def _next_events(self) -> list[Event]:
        started = time.perf_counter()
        events = self._core.next_events()
        seconds = self.metrics.seconds + time.perf_counter() - started
        self.metrics = replace(self.metrics, seconds=seconds)
        return events

    def _deliver(self, events: list[Event]) -> None:
        left = deque(events)
        while left:
            event = left.popleft()
            if isinstance(event, RequestDone):
                self._finish(event)
                continue
            _, sample = self._samples[event.key]
            try:
                self._push(sample, event)
            except Exception as error:
                sample.fail(error)
                left.extend(self._core.abort(event.key))

    def _push(self, sample: SampleBuilder, event: StepDecided | PromptRead) -> None:
        if isinstance(event, PromptRead):
            sample.prompt_read = event
        elif not sample.failed:
            self._publish(sample.request_id, sample.push(event))

    def _add(self, request: CheckedRequest) -> str:
        request_id = str(self._num_requests)
        self._num_requests += 1
        params, writers = request.params, self._parts.rules.writers
        samples = [
            SampleBuilder(request_id, i, params, writers, prm_limits=slot.prm_limits)
            for i, slot in enumerate(request.slots)
        ]
        builder = RequestBuilder(request_id, request.prompt, request.seed, samples)
        keys = list(range(self._num_keys, self._num_keys + params.n))
        self._num_keys += params.n
        for key, sample, slot in zip(keys, samples, request.slots, strict=True):
            self._samples[key] = (builder, sample)
            self._core.add(key, slot, prompt=keys[0] if params.n > 1 else -1)
        self._keys[request_id] = keys
        self._events[request_id] = deque()
        return request_id

    def _finish(self, done: RequestDone) -> None:
        builder, sample = self._samples.pop(done.key)
        try:
            self._publish(sample.request_id, sample.close(done))
        except Exception as error:
            sample.fail(error)
        if not builder.end_sample():
            return
        output = builder.output(self._parts.models.num_parameters)
        del self._keys[builder.request_id]
        self.metrics = self.metrics + replace(output.metrics, seconds=0.0)
        self._reward_watch.look(self.metrics)
        self._publish(builder.request_id, FinishedEvent(builder.request_id, output))

    def _publish(self, request_id: str, event: StreamEvent | None) -> None:
        if event is not None and request_id in self._events:
            self._events[request_id].append(event)
