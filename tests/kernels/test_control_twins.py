"""The control ops one by one: pages, schedules, the log, the weights."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from rsd_engine.core.log_reader import LogReader
from rsd_engine.core.mailbox import open_mailbox
from rsd_engine.core.slots import fill_slot
from rsd_engine.steps.policies import Clip, Constant, Logistic, Policy, Sigmoidal, Threshold
from rsd_kernels import ops
from rsd_kernels.policy.formula import accept_probability
from rsd_kernels.rollback.twin import truncate_kv
from rsd_kernels.schedule.rules import STARVED_AFTER
from rsd_kernels.schedule.twin import take_pages
from rsd_kernels.state.enums import NUM_ROLES, Finish, HostRequest, Phase, RecordKind, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState, pages_for
from rsd_kernels.step_log.twin import publish
from tests.loop.toy import toy_request

PER_PAGE = (3, 2, 5)
CPU = torch.device("cpu")


def make_state(num_slots: int = 4, num_pages: int = 200, log_words: int = 4000) -> SlotState:
    sizes = SlotSizes(
        num_slots=num_slots,
        max_len=100,
        prm_max_len=200,
        pages_per_role=100,
        num_pages=num_pages,
        log_words=log_words,
    )
    state = SlotState.allocate(sizes, CPU)
    state.tick_cap.fill_(64)
    return state


def fill(
    state: SlotState, slot: int, length: int, phase: Phase, read: int = 0, arrival: int = 0
) -> None:
    """A request of `length` tokens in a phase; its role has read `read` of them."""
    prompt = "abcdefghij" * 10
    request = toy_request(prompt[:length], max_tokens=100 - length)
    fill_slot(state, slot, request, generation=slot + 1, arrival=arrival or slot + 1)
    state.phase[slot] = phase
    role = {Phase.DRAFT: Role.DRAFT, Phase.TARGET: Role.TARGET, Phase.SCORE: Role.PRM}[phase]
    take_pages(state, role, slot, pages_for(read, PER_PAGE[role]))
    state.kv_len[role, slot] = read


class TestPages:
    def test_the_stack_gives_back_what_it_got(self) -> None:
        state = make_state(num_pages=20)
        before = state.free_pages.clone()
        take_pages(state, Role.DRAFT, 0, 3)
        take_pages(state, Role.TARGET, 1, 2)
        assert state.page_table[Role.DRAFT, 0, :3].tolist() == [0, 1, 2]
        assert state.page_table[Role.TARGET, 1, :2].tolist() == [3, 4]
        take_pages(state, Role.DRAFT, 0, 1)
        assert state.page_table[Role.DRAFT, 0, :4].tolist() == [0, 1, 2, 5]
        for slot in (0, 1):
            truncate_kv(state, slot, (0, 0, 0), PER_PAGE)
        assert int(state.num_free) == 20
        assert sorted(state.free_pages.tolist()) == sorted(before.tolist())

    @pytest.mark.parametrize(
        ("kv_len", "keep", "left", "pages"),
        [(10, 7, 7, 3), (10, 6, 6, 2), (10, 10, 10, 4), (5, 9, 5, 2), (10, 0, 0, 0), (0, 4, 0, 0)],
    )
    def test_truncate(self, kv_len: int, keep: int, left: int, pages: int) -> None:
        """Whole pages go back; a role that lags behind keeps its lag, not its spare pages."""
        state = make_state()
        take_pages(state, Role.DRAFT, 2, 4)
        state.kv_len[Role.DRAFT, 2] = kv_len
        held = state.page_table[Role.DRAFT, 2, :pages].tolist()
        truncate_kv(state, 2, (keep, 0, 0), PER_PAGE)
        assert int(state.kv_len[Role.DRAFT, 2]) == left
        assert int(state.num_pages[Role.DRAFT, 2]) == pages
        assert state.page_table[Role.DRAFT, 2, :pages].tolist() == held
        assert int(state.num_free) == 200 - pages


class TestPlan:
    def run(self, state: SlotState, max_rows: int = 16) -> RowBatch:
        batch = RowBatch.allocate(max_rows, state.num_slots, CPU)
        state.running.fill_(1)
        ops.schedule(state, batch, PER_PAGE)
        if not int(state.running):
            assert int(state.pass_role) == NUM_ROLES
            return batch.narrow(0, 0)
        return batch.narrow(int(state.num_rows), int(state.num_seqs))

    @pytest.mark.parametrize(
        ("phases", "role"),
        [
            ([Phase.DRAFT] * 3 + [Phase.TARGET], Role.DRAFT),
            ([Phase.DRAFT] * 2 + [Phase.SCORE], Role.PRM),  # scoring counts double, ties go first
            ([Phase.DRAFT] * 3 + [Phase.SCORE], Role.DRAFT),
            ([Phase.DRAFT, Phase.TARGET], Role.TARGET),
            ([Phase.TARGET, Phase.SCORE], Role.PRM),
            ([Phase.TARGET] * 2 + [Phase.DRAFT, Phase.SCORE], Role.PRM),
            ([Phase.TARGET] * 3 + [Phase.SCORE], Role.TARGET),
        ],
    )
    def test_which_role_goes(self, phases: list[Phase], role: Role) -> None:
        state = make_state()
        for slot, phase in enumerate(phases):
            fill(state, slot, 4, phase, read=3)
        self.run(state)
        assert int(state.pass_role) == role

    def test_a_role_that_waited_goes_first(self) -> None:
        state = make_state()
        for slot in range(3):
            fill(state, slot, 4, Phase.DRAFT, read=3)
        fill(state, 3, 4, Phase.TARGET, read=3)
        roles = []
        for _ in range(STARVED_AFTER + 2):
            self.run(state)
            roles.append(int(state.pass_role))
        assert roles == [Role.DRAFT] * STARVED_AFTER + [Role.TARGET, Role.DRAFT]

    def test_decode_rows_come_first_then_chunks_by_age(self) -> None:
        state = make_state()
        fill(state, 0, 9, Phase.DRAFT, arrival=3)
        fill(state, 1, 6, Phase.DRAFT, read=5, arrival=4)
        fill(state, 2, 7, Phase.DRAFT, arrival=1)
        fill(state, 3, 5, Phase.DRAFT, read=4, arrival=2)
        batch = self.run(state, max_rows=12)
        assert batch.seq_slot.tolist() == [3, 1, 2, 0]
        assert batch.seq_start.tolist() == [0, 1, 2, 9, 12]
        assert batch.seq_kv_len.tolist() == [5, 6, 7, 3]
        assert batch.seq_complete.tolist() == [1, 1, 1, 0]
        assert batch.position.tolist() == [4, 5, *range(7), 0, 1, 2]
        assert batch.slot.tolist() == [3, 1] + [2] * 7 + [0] * 3
        row = state.tokens[batch.slot.long(), batch.position.long()]
        assert batch.token.tolist() == row.tolist()
        pages = state.page_table[Role.DRAFT][batch.slot.long(), batch.position.long() // 3]
        assert batch.page.tolist() == pages.tolist()
        assert batch.offset.tolist() == (batch.position % 3).tolist()
        # The chunk that was cut goes on where it stopped.
        ops.advance(state, batch, Role.DRAFT)
        assert state.kv_len[Role.DRAFT].tolist() == [3, 6, 7, 5]
        assert state.tokens_read[Role.DRAFT].tolist() == [3, 1, 7, 1]

    def test_a_writer_that_has_read_all_reads_its_last_token_again(self) -> None:
        state = make_state()
        fill(state, 0, 6, Phase.DRAFT, read=6)
        batch = self.run(state)
        assert batch.position.tolist() == [5] and batch.seq_complete.tolist() == [1]

    def test_pages_are_all_or_nothing(self) -> None:
        state = make_state(num_pages=3)
        fill(state, 0, 12, Phase.DRAFT, arrival=1)  # needs four pages
        fill(state, 1, 7, Phase.DRAFT, arrival=2)  # needs three
        batch = self.run(state)
        assert batch.seq_slot.tolist() == [1]
        assert state.lacks_pages.tolist() == [1, 0, 0, 0]
        assert int(state.num_pages[Role.DRAFT, 0]) == 0 and int(state.num_free) == 0

    def test_another_role_goes_on_when_the_first_is_short(self) -> None:
        state = make_state(num_pages=4)
        for slot in range(2):
            fill(state, slot, 15, Phase.DRAFT)
        fill(state, 2, 4, Phase.TARGET, read=3)
        batch = self.run(state)
        assert int(state.pass_role) == Role.TARGET and batch.seq_slot.tolist() == [2]
        assert state.lacks_pages.tolist() == [1, 1, 0, 0]

    @pytest.mark.parametrize("reason", ["asked", "free", "host", "cap", "log", "idle", "short"])
    def test_when_the_loop_returns(self, reason: str) -> None:
        state = make_state(num_pages=2 if reason == "short" else 200)
        if reason != "idle":
            fill(state, 0, 12, Phase.DRAFT)
        if reason == "asked":
            state.host_request.fill_(HostRequest.RETURN)
        elif reason == "free":
            state.host_request.fill_(HostRequest.RETURN_WHEN_FREE)
            self.run(state)
            assert int(state.running) == 1
            state.phase[2] = Phase.DONE
        elif reason == "host":
            state.phase[1] = Phase.WAIT_HOST
        elif reason == "cap":
            state.tick.fill_(64)
        elif reason == "log":
            state.log_head.fill_(state.log.shape[0] - 30)
        self.run(state)
        assert int(state.running) == 0

    def test_a_tick_without_a_pass_leaves_no_rows(self) -> None:
        """Bodies are run on it to warm up: they must not act on the last pass again."""
        state, batch = make_state(), RowBatch.allocate(16, 4, CPU)
        fill(state, 0, 9, Phase.DRAFT, read=2)
        ops.schedule(state, batch, PER_PAGE)
        assert batch.seq_complete.any() and (batch.page >= 0).any()
        state.active.zero_()
        ops.schedule(state, batch, PER_PAGE)
        assert int(state.num_rows) == int(state.num_seqs) == 0
        assert (batch.page == -1).all() and not batch.seq_complete.any()
        assert not batch.seq_start.any() and not batch.seq_kv_len.any()

    @pytest.mark.parametrize(("left", "goes_on"), [(16, True), (15, False)])
    def test_the_log_keeps_room_for_a_token_that_becomes_several(
        self, left: int, goes_on: bool
    ) -> None:
        """A header of 8 words, and at most 8 tokens in this tick."""
        state = make_state(num_slots=1)
        fill(state, 0, 5, Phase.TARGET)
        state.log_head.fill_(state.log.shape[0] - left)
        self.run(state)
        assert bool(state.running) == goes_on

    def test_preempted_slots_are_left_alone(self) -> None:
        state = make_state()
        fill(state, 0, 4, Phase.DRAFT)
        fill(state, 1, 4, Phase.DRAFT)
        state.active[0] = 0
        assert self.run(state).seq_slot.tolist() == [1]


class TestWeights:
    @pytest.mark.parametrize(
        "policy",
        [Constant(0.3), Threshold(0.7), Threshold(-1), Threshold(2), Clip(), Sigmoidal(),
         Logistic(6.0, 0.5), Logistic(5000.0, 0.5)],
        ids=str,
    )  # fmt: skip
    def test_the_device_weighs_as_the_host(self, policy: Policy) -> None:
        kind, a, b = policy.columns()
        rewards = [0.0, 1.0, 0.5, 0.7, -0.2, 1.3, math.nan, *(i / 37 for i in range(38))]
        for reward in (float(np.float32(r)) for r in rewards):
            found = accept_probability(kind, float(np.float32(a)), float(np.float32(b)), reward)
            assert found == pytest.approx(policy.weight(reward), abs=1e-6), reward


class TestLog:
    def test_records_come_back_as_they_went(self) -> None:
        rng, state, wanted = random.Random(0), make_state(), []
        for slot in range(4):
            request = toy_request("abc", num_logprobs=slot - 1)
            fill_slot(state, slot, request, generation=slot + 9, arrival=1)
        for i in range(12):
            slot, size = i % 4, rng.randint(0, 5)
            state.length[slot] = 3 + size
            state.tokens[slot, 3 : 3 + size] = torch.arange(size, dtype=torch.int32) + i
            state.token_logprob[slot, 3 : 3 + size] = -torch.arange(size) - 0.5
            reward = math.nan if i % 3 else i / 16
            kind = RecordKind(1 + i % 3)
            publish(state, slot, kind=kind, source=Role.TARGET, reward=reward, finish=i % 6)
            wanted.append((slot, slot + 9, kind, reward, Finish(i % 6), tuple(range(i, i + size))))
        log = LogReader(open_mailbox(state)[1])
        records = log.take()
        assert len(records) == 12 and log.take() == []
        for record, (slot, generation, kind, reward, finish, ids) in zip(
            records, wanted, strict=True
        ):
            assert (record.slot, record.generation, record.kind) == (slot, generation, kind)
            assert record.reward == reward or math.isnan(record.reward) == math.isnan(reward)
            assert (record.finish, record.token_ids, record.source) == (finish, ids, Role.TARGET)
            if slot == 0 or not ids:
                assert record.logprobs is None
            else:
                assert record.logprobs is not None
                assert [p.logprob for p in record.logprobs] == [-0.5 - k for k in range(len(ids))]
                assert all(len(p.top) <= slot - 1 for p in record.logprobs)
        publish(state, 2, kind=RecordKind.KEPT, source=Role.DRAFT, reward=0.5, finish=0)
        assert [record.slot for record in log.take()] == [2]
        log.rewind()
        assert int(state.log_head) == 0 and log.take() == []
