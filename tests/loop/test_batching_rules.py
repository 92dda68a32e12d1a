"""The batching rules: the same results by every one of them, and the order of passes of each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from rsd_kernels import ops
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.schedule import twin as schedule_twin
from rsd_kernels.schedule.rules import LONGEST_PHASE, STARVED_AFTER, BatchingRule
from rsd_kernels.state.enums import NUM_ROLES, Mode, Phase, Role
from rsd_kernels.state.slots import SlotState
from tests.core.test_random_histories import core_of
from tests.kernels.harness.slots import CPU, PER_PAGE, fill, make_state
from tests.loop.executors.on_cpu import EXECUTORS
from tests.loop.toy import NUM_IDS, RowBatch, run, story, toy_core, toy_request

MOST_READY, EVERY_ROLE, LOCK_STEP = BatchingRule
WAITS_FOR = {Phase.DRAFT: Role.DRAFT, Phase.SCORE: Role.PRM, Phase.TARGET: Role.TARGET}
CYCLE = (Role.DRAFT, Role.PRM, Role.TARGET)
POLICIES = {
    "none": (PolicyKind.CONSTANT, 1.0, 0.0),
    "half": (PolicyKind.CONSTANT, 0.5, 0.0),
    "all": (PolicyKind.THRESHOLD, 2.0, 0.0),
}


def requests(rejected: str, count: int = 8) -> list[Any]:
    """Prompts and steps of different lengths."""
    return [
        toy_request(
            "abcdefgh"[: 1 + i % 5] * (1 + i % 3),
            max_tokens=12 + 5 * (i % 4),
            max_step_tokens=2 + 3 * (i % 3),
            temperature=float(i % 2),
            seed=i,
            policy=POLICIES[rejected],
        )
        for i in range(count)
    ]


@dataclass(frozen=True)
class Tick:
    """One pass, and the roles that some slot waited for when it was chosen."""

    role: Role
    waiting: frozenset[Role]


def watch(monkeypatch: pytest.MonkeyPatch) -> list[Tick]:
    """Records every pass that `ops.schedule` chooses in cores made from now on."""
    ticks: list[Tick] = []
    schedule = ops.schedule

    def watched(state: SlotState, *rest: Any) -> None:
        phases = state.phase[state.active != 0].tolist()
        waiting = frozenset(role for phase, role in WAITS_FOR.items() if phase in phases)
        schedule(state, *rest)
        if int(state.pass_role) < NUM_ROLES:
            ticks.append(Tick(Role(int(state.pass_role)), waiting))

    monkeypatch.setattr(ops, "schedule", watched)
    return ticks


def after(role: Role) -> tuple[Role, ...]:
    """The roles in turn, the one after `role` first and `role` last."""
    at = CYCLE.index(role) + 1
    return CYCLE[at:] + CYCLE[:at]


def always_a(row: tuple[int, ...]) -> list[float]:
    return [float(i == 0) for i in range(NUM_IDS)]


class TestResults:
    @pytest.mark.parametrize("slots", [1, 3, 8])
    @pytest.mark.parametrize("rejected", POLICIES)
    def test_are_the_same_by_every_rule(self, rejected: str, slots: int) -> None:
        told = []
        for rule in BatchingRule:
            events = run(core_of(slots, 800, 64, rule=rule), requests(rejected))
            told.append({key: story(found) for key, found in events.items()})
        assert told[0] == told[1] == told[2]
        lines = [line for found in told[0].values() for line in found]
        assert any(" rejected: " in line for line in lines) == (rejected != "none")
        assert any(" kept: " in line and "draft" in line for line in lines) == (rejected != "all")

    @pytest.mark.parametrize("rule", BatchingRule)
    def test_nothing_hangs_or_changes_when_pages_are_short(self, rule: BatchingRule) -> None:
        wanted = run(core_of(1, 800, 64), requests("half"))
        core = core_of(4, 34, 64, rule=rule)
        found = run(core, requests("half"))
        assert core.num_preemptions > 0
        assert {key: story(events) for key, events in found.items()} == {
            key: story(events) for key, events in wanted.items()
        }

    @pytest.mark.parametrize("ticks_per_launch", [1, 5, 1000])
    @pytest.mark.parametrize("name", sorted(EXECUTORS))
    @pytest.mark.parametrize("rule", BatchingRule)
    def test_all_executors_choose_alike(
        self, rule: BatchingRule, name: str, ticks_per_launch: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Launches may end anywhere: what the rule remembers outlives them."""
        ticks = watch(monkeypatch)
        run(core_of(5, 800, 64, rule=rule), requests("half", 5))
        wanted = ticks.copy()
        ticks.clear()
        run(core_of(5, 800, ticks_per_launch, name, rule=rule), requests("half", 5))
        assert ticks == wanted and {tick.role for tick in ticks} == set(Role)


class TestOrder:
    def test_one_slot_leaves_nothing_to_choose(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = watch(monkeypatch)
        found = []
        for rule in BatchingRule:
            run(core_of(1, 400, 64, rule=rule), requests("half", 3))
            found.append(ticks.copy())
            ticks.clear()
        assert found[0] == found[1] == found[2]

    @pytest.mark.parametrize("ticks_per_launch", [3, 1000])
    def test_lock_step_stays_until_nobody_waits(
        self, ticks_per_launch: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ticks = watch(monkeypatch)
        run(core_of(8, 800, ticks_per_launch, rule=LOCK_STEP), requests("half"))
        left = 0
        for one, two in pairwise(ticks):
            if one.role in two.waiting:
                assert two.role == one.role
            else:
                left += 1
                assert two.role == next(role for role in after(one.role) if role in two.waiting)
        assert left > 10

    def test_every_role_takes_its_turn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = watch(monkeypatch)
        run(core_of(8, 800, 3, rule=EVERY_ROLE), requests("half"))
        for one, two in pairwise(ticks):
            assert two.role == next(role for role in after(one.role) if role in two.waiting)
        assert sum(len(tick.waiting) == NUM_ROLES for tick in ticks) > 5

    def test_the_rules_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = watch(monkeypatch)
        orders = set()
        for rule in BatchingRule:
            run(core_of(8, 800, 64, rule=rule), requests("half"))
            orders.add(tuple(tick.role for tick in ticks))
            ticks.clear()
        assert len(orders) == 3

    def test_lock_step_lets_nobody_wait_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A request of the draft alone waits for the draft from its first token to its last."""
        monkeypatch.setattr("rsd_kernels.schedule.twin.LONGEST_PHASE", 7)
        monkeypatch.setattr(ops, "schedule", schedule_twin.schedule)
        ticks = watch(monkeypatch)
        core = toy_core(always_a, always_a, lambda row: 0.9, num_slots=2, rule=LOCK_STEP)
        alone = toy_request("b", mode=Mode.DRAFT, max_tokens=60)
        run(core, [alone, toy_request("ab", max_step_tokens=2, max_tokens=9)])
        first = next(i for i, tick in enumerate(ticks) if Role.PRM in tick.waiting)
        assert [tick.role for tick in ticks[first : first + 8]] == [Role.DRAFT] * 7 + [Role.PRM]


class TestPlan:
    """One choice at a time."""

    @pytest.mark.parametrize(
        ("rule", "last", "phases", "role"),
        [
            (EVERY_ROLE, Role.DRAFT, [Phase.DRAFT] * 3 + [Phase.TARGET], Role.TARGET),
            (EVERY_ROLE, Role.DRAFT, [Phase.TARGET, Phase.SCORE], Role.PRM),
            (EVERY_ROLE, Role.PRM, [Phase.DRAFT, Phase.TARGET, Phase.SCORE], Role.TARGET),
            (EVERY_ROLE, Role.TARGET, [Phase.DRAFT, Phase.TARGET, Phase.SCORE], Role.DRAFT),
            (EVERY_ROLE, Role.PRM, [Phase.SCORE], Role.PRM),
            (LOCK_STEP, Role.DRAFT, [Phase.DRAFT] + [Phase.SCORE] * 3, Role.DRAFT),
            (LOCK_STEP, Role.DRAFT, [Phase.TARGET, Phase.SCORE], Role.PRM),
            (LOCK_STEP, Role.PRM, [Phase.SCORE] + [Phase.DRAFT] * 3, Role.PRM),
            (LOCK_STEP, Role.PRM, [Phase.TARGET] + [Phase.DRAFT] * 3, Role.TARGET),
            (LOCK_STEP, Role.TARGET, [Phase.TARGET] + [Phase.DRAFT] * 3, Role.TARGET),
            (LOCK_STEP, Role.TARGET, [Phase.DRAFT, Phase.SCORE], Role.DRAFT),
        ],
    )
    def test_which_role_goes(
        self, rule: BatchingRule, last: Role, phases: list[Phase], role: Role
    ) -> None:
        state = make_state()
        for slot, phase in enumerate(phases):
            fill(state, slot, 4, phase, read=3)
        state.last_role.fill_(last)
        ops.schedule(state, RowBatch.allocate(16, 4, CPU), PER_PAGE, rule)
        assert int(state.pass_role) == int(state.last_role) == role

    @pytest.mark.parametrize(
        ("rule", "waited"),
        [(MOST_READY, STARVED_AFTER), (EVERY_ROLE, STARVED_AFTER), (LOCK_STEP, LONGEST_PHASE)],
    )
    def test_who_waited_too_long_goes_first(self, rule: BatchingRule, waited: int) -> None:
        roles = []
        for wait in (waited - 1, waited):
            state = make_state()
            for slot in range(3):
                fill(state, slot, 4, Phase.SCORE, read=3)
            fill(state, 3, 4, Phase.TARGET, read=3)
            # By its rule the PRM would go: most ready, after the draft, or still at it.
            state.last_role.fill_(Role.DRAFT)
            state.role_wait[Role.TARGET] = wait
            ops.schedule(state, RowBatch.allocate(16, 4, CPU), PER_PAGE, rule)
            roles.append(int(state.pass_role))
        assert roles == [Role.PRM, Role.TARGET]

    @pytest.mark.parametrize("rule", BatchingRule)
    def test_another_role_goes_on_when_the_first_is_short(self, rule: BatchingRule) -> None:
        state = make_state(num_pages=4)
        for slot in range(2):
            fill(state, slot, 15, Phase.DRAFT)
        fill(state, 2, 4, Phase.TARGET, read=3)
        state.last_role.fill_({EVERY_ROLE: Role.TARGET}.get(rule, Role.DRAFT))
        ops.schedule(state, RowBatch.allocate(16, 4, CPU), PER_PAGE, rule)
        assert int(state.pass_role) == Role.TARGET and state.lacks_pages.tolist() == [1, 1, 0, 0]

    def test_a_tick_without_a_pass_forgets_nothing(self) -> None:
        state = make_state()
        fill(state, 0, 4, Phase.TARGET, read=3)
        batch = RowBatch.allocate(16, 4, CPU)
        ops.schedule(state, batch, PER_PAGE, LOCK_STEP)
        state.active.zero_()
        ops.schedule(state, batch, PER_PAGE, LOCK_STEP)
        assert int(state.pass_role) == NUM_ROLES and int(state.last_role) == Role.TARGET
