"""The twin of schedule: which pass comes next, and which rows are in it."""

from __future__ import annotations

import pytest

from rsd_kernels import ops
from rsd_kernels.schedule.rules import STARVED_AFTER
from rsd_kernels.schedule.twin import advance
from rsd_kernels.state.enums import NUM_ROLES, HostRequest, Phase, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from tests.kernels.harness.slots import CPU, PER_PAGE, fill, make_state


class TestSchedule:
    def run(self, state: SlotState, max_rows: int = 16) -> RowBatch:
        batch = RowBatch.allocate(max_rows, state.num_slots, CPU)
        state.running.fill_(1)
        ops.schedule(state, batch, PER_PAGE)
        if not int(state.running):
            assert int(state.pass_role) == NUM_ROLES
            return batch.narrow(0, 0, 0)
        return batch.narrow(int(state.num_rows), int(state.num_seqs), int(state.num_places))

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
        advance(state, batch, Role.DRAFT)
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
        """Executors warm up on this state: the bodies must not repeat the last pass."""
        state, batch = make_state(), RowBatch.allocate(16, 4, CPU)
        fill(state, 0, 9, Phase.DRAFT, read=2)
        ops.schedule(state, batch, PER_PAGE)
        assert batch.seq_complete.any() and (batch.page >= 0).any()
        state.active.zero_()
        ops.schedule(state, batch, PER_PAGE)
        assert int(state.num_rows) == int(state.num_seqs) == 0
        assert (batch.page == -1).all() and not batch.seq_complete.any()
        assert not batch.seq_start.any() and not batch.seq_kv_len.any()

    @pytest.mark.parametrize(("left", "goes_on"), [(17, True), (16, False)])
    def test_the_log_keeps_room_for_a_token_that_becomes_several(
        self, left: int, goes_on: bool
    ) -> None:
        """A header of 9 words, and at most 8 tokens in this tick."""
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
