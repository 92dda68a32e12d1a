"""Any history of admissions, aborts, preemptions, failures: pages add up, nothing is lost."""

from __future__ import annotations

import zlib
from collections import Counter
from functools import cache
from typing import ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone
from rsd_engine.core.host_steps import HostEnds
from rsd_engine.core.slots import SlotRequest
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import Mode, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.tables import StepTables
from tests.loop.executors.on_cpu import EXECUTORS
from tests.loop.toy import NEWLINE, NUM_IDS, Writer, run, story, toy_core, toy_request
from tests.loop.two_vocabularies import (
    MAX_LEN,
    NUM_TARGET_IDS,
    TOKENS,
    by_text,
    decoder_of,
    for_two_vocabularies,
    two_vocabularies,
)
from tests.page_checks import check_integrity

POLICIES = (
    (PolicyKind.THRESHOLD, 0.5, 0.0),
    (PolicyKind.CONSTANT, 0.5, 0.0),
    (PolicyKind.CLIP, 0.0, 0.0),
    (PolicyKind.THRESHOLD, 1.1, 0.0),
)


def noise(name: bytes, row: tuple[int, ...], index: int) -> float:
    """A number in [0, 1) that depends on everything before, as a model's does."""
    return zlib.crc32(name + bytes(row) + bytes([index])) / 2**32


def writer(name: bytes, num_ids: int = NUM_IDS, newline: int = NEWLINE) -> Writer:
    def logits(row: tuple[int, ...]) -> list[float]:
        values = [3.0 * noise(name, row, i) for i in range(num_ids)]
        values[newline] += 2.5 if row[-1] == newline else 1.2
        return values

    return logits


def score(row: tuple[int, ...]) -> float:
    return noise(b"prm", row, 0)


def core_of(
    num_slots: int,
    num_pages: int,
    ticks: int,
    executor: str = "eager",
    *,
    text: bool = False,
    two: bool = False,
    rule: BatchingRule = BatchingRule.MOST_READY,
    max_guesses: int = 0,
    enable_prefix_caching: bool = True,
    tables: StepTables | None = None,
    prm_kv: Role = Role.PRM,
    text_ends: HostEnds | None = None,
) -> EngineCore:
    make_executor, row_buckets = EXECUTORS[executor]
    ids = (NUM_TARGET_IDS, TOKENS.index("\n")) if two else (NUM_IDS, NEWLINE)
    return toy_core(
        writer(b"draft"),
        writer(b"target", *ids),
        score,
        max_len=MAX_LEN if two else 96,
        vocabularies=two_vocabularies() if two else None,
        num_slots=num_slots,
        num_pages=num_pages,
        max_rows=8,
        ticks_per_launch=ticks,
        row_buckets=row_buckets,
        make_executor=make_executor,
        text_bridge=by_text if text else None,
        rule=rule,
        max_guesses=max_guesses,
        enable_prefix_caching=enable_prefix_caching,
        tables=tables,
        prm_kv=prm_kv,
        text_ends=text_ends,
    )


class Broken(Exception):
    """A forward pass that failed."""


def break_passes(core: EngineCore, role: Role, passes: set[int]) -> list[int]:
    """From now on the forward of `role` fails in these passes, counted from 1; lists which did."""
    forward, count, broken = core.loop.forwards[role], 0, list[int]()

    def fails(batch: RowBatch) -> None:
        nonlocal count
        count += 1
        if count in passes:
            broken.append(count)
            raise Broken
        forward(batch)

    core.loop.forwards[role] = fails
    return broken


Wanted = tuple[str, int, float, int, int, Mode]


def make_request(wanted: Wanted, *, two: bool = False) -> SlotRequest:
    prompt, seed, temperature, max_tokens, policy, mode = wanted
    request = toy_request(
        prompt,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
        max_step_tokens=9,
        policy=POLICIES[policy],
        stop=("abc", "\na"),
        mode=mode,
    )
    return for_two_vocabularies(request) if two else request


@cache
def alone(wanted: Wanted, two: bool = False) -> list[str]:
    [events] = run(core_of(1, 400, 64, two=two), [make_request(wanted, two=two)]).values()
    return told(events, two)


def told(events: list[Event], two: bool) -> list[str]:
    return story(events, decoder_of) if two else story(events)


WANTED = st.tuples(
    st.text("abcdefgh", min_size=1, max_size=20),
    st.integers(0, 5),
    st.sampled_from([0.0, 1.0]),
    st.integers(1, 30),
    st.integers(0, len(POLICIES) - 1),
    st.sampled_from([Mode.RSD, Mode.RSD, Mode.RSD, Mode.DRAFT, Mode.TARGET]),
)


class Histories(RuleBasedStateMachine):
    """One core under random orders; the toy models notice any token read or kept wrongly."""

    seen: ClassVar[Counter[str]] = Counter()  # over all histories

    @initialize(
        slots=st.integers(1, 4),
        pages=st.integers(40, 90),
        ticks=st.sampled_from([1, 2, 3, 40]),
        executor=st.sampled_from(sorted(EXECUTORS)),
        way=st.sampled_from(["ids", "text", "two vocabularies"]),
        rule=st.sampled_from(BatchingRule),
        first=st.lists(WANTED, min_size=2, max_size=8),
    )
    def start(
        self,
        slots: int,
        pages: int,
        ticks: int,
        executor: str,
        way: str,
        rule: BatchingRule,
        first: list[Wanted],
    ) -> None:
        self.two = way == "two vocabularies"
        self.core = core_of(
            slots, pages, ticks, executor, text=way == "text", two=self.two, rule=rule
        )
        self.broken: list[list[int]] = []
        self.wanted: dict[int, Wanted] = {}
        self.events: dict[int, list[Event]] = {}
        for wanted in first:
            self.admit(wanted)

    @rule(wanted=WANTED)
    def admit(self, wanted: Wanted) -> None:
        request, key = make_request(wanted, two=self.two), len(self.wanted)
        if self.core.check(request) is None:
            self.core.add(key, request)
            self.wanted[key], self.events[key] = wanted, []

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        for _ in range(times):
            self._step()
            check_integrity(self.core.state, self.core.loop.tokens_per_page)

    @rule(role=st.sampled_from(list(Role)))
    def fail(self, role: Role) -> None:
        self.broken.append(break_passes(self.core, role, {1}))

    @rule()
    def ask(self) -> None:
        self.core.ask_to_return()

    @rule()
    def preempt(self) -> None:
        self.core.preempt_youngest()

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """Sometimes of a request that has already ended."""
        ended = {key for key, events in self.events.items() if _has_ended(events)}
        running = self.core.slot_keys
        some = sorted(self.wanted.keys() - ended) or sorted(ended)
        key = data.draw(st.sampled_from(some) | st.sampled_from(sorted(self.wanted)))
        self.seen["aborts of running requests"] += key in running
        self._collect(self.core.abort(key))

    @invariant()
    def pages_have_one_owner(self) -> None:
        if hasattr(self, "core"):
            check_integrity(self.core.state, self.core.loop.tokens_per_page)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(5000):
            if not self.core.has_work:
                break
            self._step()
        assert not self.core.has_work, "the loop does not end"
        assert int(self.core.state.num_free) == self.core.state.free_pages.shape[0]
        self.seen["preemptions"] += self.core.num_preemptions
        self.seen["failed passes"] += sum(map(len, self.broken))
        for key, wanted in self.wanted.items():
            found = told(self.events[key], self.two)
            end = self.events[key][-1]
            assert isinstance(end, RequestDone)
            self.seen["aborts in mid-text"] += end.finish is None and len(found) > 1
            self.seen["rejections"] += any(" rejected: " in line for line in found)
            self.seen["failures"] += bool(end.failure)
            lines = alone(wanted, self.two)
            self.seen["targets of another vocabulary"] += self.two and " rejected: " in str(found)
            if end.finish is None or end.failure:
                assert found[:-1] == lines[: len(found) - 1]
            else:
                assert found == lines

    def _step(self) -> None:
        self._collect(self.core.next_events())

    def _collect(self, events: list[Event]) -> None:
        for event in events:
            assert not _has_ended(self.events[event.key])
            self.events[event.key].append(event)


def _has_ended(events: list[Event]) -> bool:
    return any(isinstance(event, RequestDone) for event in events)


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=120,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_the_histories_were_worth_it() -> None:
    seen = Histories.seen
    if not seen:
        pytest.skip("they have not run")
    wanted = (
        "failed passes", "preemptions", "aborts of running requests", "rejections",
        "targets of another vocabulary",
    )  # fmt: skip
    assert all(seen[name] >= 5 for name in wanted), seen
    assert 0 < seen["failures"] < seen["failed passes"], seen
    assert seen["aborts in mid-text"] > 0, seen
