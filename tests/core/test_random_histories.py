"""Any history of admissions, aborts and preemptions: pages add up, results are those alone."""

from __future__ import annotations

import zlib
from functools import cache

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.events import Event, RequestDone
from rsd_engine.memory.slots import SlotRequest, check_integrity
from rsd_kernels.slot_state import Mode, PolicyKind
from tests.loop.executors import EXECUTORS
from tests.loop.toy import NEWLINE, NUM_IDS, run, story, toy_core, toy_request

POLICIES = (
    (PolicyKind.THRESHOLD, 0.5, 0.0),
    (PolicyKind.CONSTANT, 0.5, 0.0),
    (PolicyKind.CLIP, 0.0, 0.0),
    (PolicyKind.THRESHOLD, 1.1, 0.0),
)


def noise(name: bytes, row: tuple[int, ...], index: int) -> float:
    """A number in [0, 1) that depends on everything before, as a model's does."""
    return zlib.crc32(name + bytes(row) + bytes([index])) / 2**32


def writer(name: bytes):
    def logits(row: tuple[int, ...]) -> list[float]:
        values = [3.0 * noise(name, row, i) for i in range(NUM_IDS)]
        values[NEWLINE] += 2.5 if row[-1] == NEWLINE else 1.2
        return values

    return logits


def score(row: tuple[int, ...]) -> float:
    return noise(b"prm", row, 0)


def core_of(num_slots: int, num_pages: int, ticks: int, executor: str = "eager") -> EngineCore:
    make_executor, row_buckets = EXECUTORS[executor]
    return toy_core(
        writer(b"draft"),
        writer(b"target"),
        score,
        num_slots=num_slots,
        num_pages=num_pages,
        max_rows=8,
        ticks_per_launch=ticks,
        row_buckets=row_buckets,
        make_executor=make_executor,
    )


Wanted = tuple[str, int, float, int, int, Mode]


def make_request(wanted: Wanted) -> SlotRequest:
    prompt, seed, temperature, max_tokens, policy, mode = wanted
    return toy_request(
        prompt,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
        max_step_tokens=9,
        policy=POLICIES[policy],
        stop=("abc", "\na"),
        mode=mode,
    )


@cache
def alone(wanted: Wanted) -> list[str]:
    return story(run(core_of(1, 400, 64), [make_request(wanted)])[0])


class Histories(RuleBasedStateMachine):
    """One core under random orders; the toy models notice any token read or kept wrongly."""

    @initialize(
        slots=st.integers(1, 4),
        pages=st.integers(40, 90),
        ticks=st.sampled_from([1, 2, 3, 40]),
        executor=st.sampled_from(sorted(EXECUTORS)),
    )
    def start(self, slots: int, pages: int, ticks: int, executor: str) -> None:
        self.core = core_of(slots, pages, ticks, executor)
        self.wanted: dict[int, Wanted] = {}
        self.events: dict[int, list[Event]] = {}

    @rule(
        prompt=st.text("abcdefgh", min_size=1, max_size=20),
        seed=st.integers(0, 5),
        temperature=st.sampled_from([0.0, 1.0]),
        max_tokens=st.integers(1, 30),
        policy=st.integers(0, len(POLICIES) - 1),
        mode=st.sampled_from([Mode.RSD, Mode.RSD, Mode.RSD, Mode.DRAFT, Mode.TARGET]),
    )
    def admit(
        self, prompt: str, seed: int, temperature: float, max_tokens: int, policy: int, mode: Mode
    ) -> None:
        wanted = (prompt, seed, temperature, max_tokens, policy, mode)
        request, key = make_request(wanted), len(self.wanted)
        if self.core.check(request) is None:
            self.core.add(key, request)
            self.wanted[key], self.events[key] = wanted, []

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        for _ in range(times):
            self._collect(self.core.step())
            check_integrity(self.core.state, self.core.loop.tokens_per_page)

    @rule()
    def preempt(self) -> None:
        self.core.preempt_youngest()

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self._collect(self.core.abort(data.draw(st.sampled_from(sorted(self.wanted)))))

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
            self._collect(self.core.step())
        assert not self.core.has_work, "the loop does not end"
        assert int(self.core.state.num_free) == self.core.state.free_pages.shape[0]
        for key, wanted in self.wanted.items():
            found = story(self.events[key])
            end = self.events[key][-1]
            assert isinstance(end, RequestDone)
            if end.finish is None:
                assert found[:-1] == alone(wanted)[: len(found) - 1]
            else:
                assert found == alone(wanted)

    def _collect(self, events: list[Event]) -> None:
        for event in events:
            assert not any(isinstance(e, RequestDone) for e in self.events[event.key])
            self.events[event.key].append(event)


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=20,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
