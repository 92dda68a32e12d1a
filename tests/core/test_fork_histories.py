"""Any history of forks: samples of one prompt, candidates for steps, pages found again.

After every tick owners, page tables and the stack agree, and pages in which nothing is to be found
are overwritten; the toy models notice who reads another one's tokens, or none, or writes to a page
that others own too. Every request tells the story that it tells alone, without a cache.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from rsd_engine.core.events import Event, RequestDone
from rsd_engine.core.host_steps import HostEnds
from rsd_engine.core.slots import SlotRequest
from rsd_engine.steps.selection import GSI, Beam, Best, Selection, Softmax
from rsd_kernels import ops
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import Mode, Role
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import StepTables
from tests.core.groups.test_groups import outcome
from tests.core.prefixes.test_histories import STEMS, spoil_free_pages
from tests.core.test_random_histories import POLICIES, break_passes, core_of, make_request
from tests.loop.executors.on_cpu import EXECUTORS
from tests.loop.toy import around_steps, as_written, run, toy_ends, toy_tables
from tests.page_checks import check_integrity

TICKS = 100_000  # of the many histories


SCORERS: dict[str, tuple[StepTables | None, Role]] = {
    "PRM": (None, Role.PRM),
    "PRM, tokens that leave again": (around_steps(toy_tables()), Role.PRM),
    "target": (as_written("ij"), Role.TARGET),
}


class Asked(NamedTuple):
    """A request, or one of several samples of its prompt."""

    prompt: str
    seed: int
    temperature: float
    max_tokens: int
    policy: int
    mode: Mode
    select: Selection | None
    candidates: int
    sample: int = 0

    def request(self, scorer: str) -> SlotRequest:
        made = replace(make_request(self[:6]), prm_step_ids=4, prm_transient=2)
        if scorer == "target" and made.prm_prompt:
            made = replace(made, prm_prompt=made.prompt)
        if self.select and self.mode == Mode.RSD:
            made = replace(made, select=self.select, step_candidates=self.candidates)
        return replace(made, sample_index=self.sample)


ASKED = st.builds(
    Asked,
    prompt=st.tuples(st.sampled_from(STEMS), st.text("abcdefgh", min_size=1, max_size=3)).map(
        "".join
    ),
    seed=st.integers(0, 3),
    temperature=st.sampled_from([0.0, 1.0, 1.0]),
    max_tokens=st.integers(1, 24),
    policy=st.integers(0, len(POLICIES) - 1),
    mode=st.sampled_from([Mode.RSD, Mode.RSD, Mode.RSD, Mode.DRAFT, Mode.TARGET]),
    select=st.sampled_from([None, None, Best(), Softmax(3.0), GSI(4.0, 1.0), Beam(2)]),
    candidates=st.integers(2, 3),
    sample=st.just(0),
)


@cache
def alone(asked: Asked, scorer: str, ends: HostEnds | None) -> list[tuple[str, tuple[str, ...]]]:
    tables, prm_kv = SCORERS[scorer]
    core = core_of(
        6, 800, 64, enable_prefix_caching=False, tables=tables, prm_kv=prm_kv, text_ends=ends
    )
    return outcome(run(core, [asked.request(scorer)])[0])


class ForkHistories(RuleBasedStateMachine):
    """One core under random orders."""

    seen: ClassVar[Counter[str]]  # over all histories

    @initialize(
        slots=st.integers(6, 8),
        pages=st.integers(45, 120),
        ticks=st.sampled_from([1, 3, 40]),
        executor=st.sampled_from(sorted(EXECUTORS)),
        scorer=st.sampled_from(sorted(SCORERS)),
        text=st.booleans(),
        ends=st.sampled_from([None, toy_ends]),
        rule=st.sampled_from(BatchingRule),
        first=st.lists(st.tuples(ASKED, st.integers(1, 4)), min_size=1, max_size=4),
    )
    def start(
        self,
        slots: int,
        pages: int,
        ticks: int,
        executor: str,
        scorer: str,
        text: bool,
        ends: HostEnds | None,
        rule: BatchingRule,
        first: list[tuple[Asked, int]],
    ) -> None:
        # A scorer of its own K and V reads ends as they were written.
        self.scorer, self.ends = scorer, ends if scorer != "target" else None
        tables, prm_kv = SCORERS[scorer]
        self.asked: dict[int, Asked] = {}
        self.events: dict[int, list[Event]] = {}
        self.prompts = 0
        self.kept: dict[int, int] = {}  # stamps of free pages in which something is found
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "schedule", self._watched(ops.schedule))
            self.core = core_of(
                slots, pages, ticks, executor,
                text=text and scorer == "PRM", rule=rule, tables=tables, prm_kv=prm_kv,
                text_ends=self.ends,
            )  # fmt: skip
        for asked, samples in first:
            self.admit(asked, samples)

    @rule(asked=ASKED, samples=st.integers(1, 4))
    def admit(self, asked: Asked, samples: int) -> None:
        self.prompts += 1
        for sample in range(samples):
            one, key = asked._replace(sample=sample), len(self.asked)
            request = one.request(self.scorer)
            if self.core.check(request) is None:
                self.core.add(key, request, prompt=self.prompts if samples > 1 else -1)
                self.asked[key], self.events[key] = one, []

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        for _ in range(times):
            if self.core.has_work:
                self._collect(self.core.next_events())
                self._look(self.core.state)

    @rule()
    def preempt(self) -> None:
        self.core.preempt_youngest()

    @rule(role=st.sampled_from(list(Role)))
    def fail(self, role: Role) -> None:
        break_passes(self.core, role, {1})

    @rule()
    def forget(self) -> None:
        self.core.prefixes.reset()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        running = {key for key in self.core.slot_keys if key is not None}
        key = data.draw(st.sampled_from(sorted(running or self.asked)))
        self.seen["aborts"] += key in running
        self._collect(self.core.abort(key))

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(5000):
            if not self.core.has_work:
                break
            self._collect(self.core.next_events())
        assert not self.core.has_work, "the loop does not end"
        state = self.core.state
        assert int(state.num_free) == state.free_pages.shape[0]
        self.seen["preemptions"] += self.core.num_preemptions
        for key, asked in self.asked.items():
            found, end = outcome(self.events[key]), self.events[key][-1]
            whole = alone(asked, self.scorer, self.ends)
            assert isinstance(end, RequestDone)
            if end.finish is not None and not end.failure:
                assert found == whole
            elif not isinstance(asked.select, Beam):  # a beam that leads may lose yet
                assert found[:-1] == whole[: len(found) - 1]
            self.seen["tokens found"] += sum(c.cached_tokens for c in end.counters.values())
            self.seen["candidates that lost"] += sum(len(lost) for _, lost in found)
            self.seen["failures"] += bool(end.failure)
            self.seen[f"ends of {asked.select}"] += end.finish is not None

    def _watched(self, schedule: Any) -> Any:
        def op(state: SlotState, *args: Any) -> None:
            if hasattr(self, "core"):  # it has been warmed up
                self._look(state)
                self.seen["ticks"] += 1
            schedule(state, *args)

        return op

    def _look(self, state: SlotState) -> None:
        """Before the next tick: pytest.fail, as an ordinary error would end one request."""
        try:
            check_integrity(state, self.core.loop.tokens_per_page)
        except AssertionError as error:
            pytest.fail(str(error))
        self.seen["shared pages"] += int((state.page_owners > 1).sum())
        stamps = state.page_stamp.tolist()
        self.seen["evicted pages"] += sum(stamps[page] != was for page, was in self.kept.items())
        free = state.free_pages[: int(state.num_free)].tolist()
        self.kept = {page: stamps[page] for page in free if self.core.prefixes.holds(page)}
        spoil_free_pages(self.core)

    def _collect(self, events: list[Event]) -> None:
        for event in events:
            told = self.events[event.key]
            assert not any(isinstance(one, RequestDone) for one in told)
            told.append(event)


class FewHistories(ForkHistories):
    seen: ClassVar[Counter[str]] = Counter()


class ManyHistories(ForkHistories):
    seen: ClassVar[Counter[str]] = Counter()


def of(max_examples: int, steps: int) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


TestFew = FewHistories.TestCase
TestFew.settings = of(12, 25)
TestMany = pytest.mark.slow(ManyHistories.TestCase)
TestMany.settings = of(400, 40)


def test_the_few_histories_were_worth_it() -> None:
    if not FewHistories.seen:
        pytest.skip("they have not run")
    assert all(FewHistories.seen.values()), FewHistories.seen


@pytest.mark.slow
def test_the_many_histories_were_worth_it() -> None:
    if not ManyHistories.seen:
        pytest.skip("they have not run")
    seen = ManyHistories.seen
    assert seen["ticks"] >= TICKS and all(count > 20 for count in seen.values()), seen
