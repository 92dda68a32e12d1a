"""The control ops one by one: random numbers, draws, pages, plans, the log, the weights."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_engine.core.log_reader import drain
from rsd_engine.memory.slots import fill_slot
from rsd_engine.steps.policies import Clip, Constant, Logistic, Policy, Sigmoidal, Threshold
from rsd_kernels import ops
from rsd_kernels.reference.pages import pages_for, take_pages, truncate_kv
from rsd_kernels.reference.philox import Purpose, philox, uniform
from rsd_kernels.reference.plan import STARVED_AFTER
from rsd_kernels.reference.sample import NOT_FINITE, filtered_probabilities
from rsd_kernels.reference.settle import accept_probability
from rsd_kernels.reference.step_log import RecordKind, publish
from rsd_kernels.row_batch import RowBatch
from rsd_kernels.slot_state import (
    NUM_ROLES,
    Finish,
    HostRequest,
    Phase,
    Role,
    SlotLimits,
    SlotState,
)
from tests.loop.toy import NUM_IDS, toy_request

PER_PAGE = (3, 2, 5)
CPU = torch.device("cpu")
ONES = 0xFFFFFFFF


def make_state(num_slots: int = 4, num_pages: int = 200, log_words: int = 4000) -> SlotState:
    limits = SlotLimits(
        num_slots=num_slots,
        row_len=100,
        prm_row_len=200,
        pages_per_role=100,
        num_pages=num_pages,
        log_words=log_words,
    )
    state = SlotState.allocate(limits, CPU)
    state.tick_cap.fill_(64)
    return state


def fill(
    state: SlotState, slot: int, length: int, phase: Phase, read: int = 0, age: int = 0
) -> None:
    """A request of `length` tokens in a phase; its role has read `read` of them."""
    prompt = "abcdefghij" * 10
    request = toy_request(prompt[:length], max_tokens=100 - length)
    fill_slot(state, slot, request, generation=slot + 1, age=age or slot + 1)
    state.phase[slot] = phase
    role = {Phase.DRAFT: Role.DRAFT, Phase.TARGET: Role.TARGET, Phase.SCORE: Role.PRM}[phase]
    take_pages(state, role, slot, pages_for(read, PER_PAGE[role]))
    state.kv_len[role, slot] = read


class TestPhilox:
    """Philox4x32-10; vectors from the authors' known-answer tests."""

    def test_known_answers(self) -> None:
        assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
        ones = philox((ONES, ONES, ONES, ONES), (ONES, ONES))
        assert ones == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
        pi = philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
        assert pi == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)

    def test_every_part_of_the_key_counts(self) -> None:
        base = {"num_steps": 3, "position": 40, "role": 0, "purpose": Purpose.TOKEN}
        found = {uniform(5, 0, **base)}  # type: ignore[arg-type]
        changes: list[dict[str, object]] = [
            {"num_steps": 4}, {"position": 41}, {"role": 1}, {"purpose": Purpose.ACCEPT},
        ]  # fmt: skip
        found |= {uniform(5, 0, **{**base, **change}) for change in changes}  # type: ignore[arg-type]
        found |= {uniform(6, 0, **base), uniform(5, 1, **base)}  # type: ignore[arg-type]
        found.add(uniform(5 + 2**32, 0, **base))  # type: ignore[arg-type]
        assert len(found) == 8

    def test_numbers_are_uniform_and_exact_in_float32(self) -> None:
        numbers = np.array(
            [
                uniform(s, 0, num_steps=n, position=p, role=0, purpose=Purpose.TOKEN)
                for s in range(10) for n in range(10) for p in range(40)
            ]
        )  # fmt: skip
        assert numbers.min() >= 0 and numbers.max() < 1
        assert (numbers.astype(np.float32) == numbers).all()
        counts = np.histogram(numbers, 20, (0, 1))[0]
        assert float(((counts - 200) ** 2 / 200).sum()) < 43.8  # 19 degrees of freedom, p = 0.001


def reference_distribution(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> list[float]:
    """The filters one token at a time in float64: temperature, min-p, top-k, top-p."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    kept = [i for i, w in enumerate(weights) if w >= min_p]
    kept.sort(key=lambda i: -weights[i])
    if 0 < top_k < len(logits):
        kept = kept[:top_k]
    total, mass, nucleus = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if mass / total >= top_p:
            break
        nucleus.append(i)
        mass += weights[i]
    return [weights[i] / mass if i in nucleus else 0.0 for i in range(len(logits))]


class TestSample:
    @pytest.mark.parametrize("top_k", [0, 1, 7, 50, 500])
    @pytest.mark.parametrize("top_p", [1.0, 0.9, 0.35, 0.01])
    @pytest.mark.parametrize("min_p", [0.0, 0.05, 0.5, 1.0])
    def test_filters(self, top_k: int, top_p: float, min_p: float) -> None:
        for seed, temperature in enumerate((0.3, 1.0, 1.7)):
            generator = torch.Generator().manual_seed(seed)
            logits = torch.randn(60, generator=generator) * 3
            found = filtered_probabilities(
                logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
            )
            wanted = reference_distribution(logits.tolist(), temperature, top_k, top_p, min_p)
            assert found.tolist() == pytest.approx(wanted, abs=1e-6)
            assert float(found.sum()) == pytest.approx(1.0)

    def run(self, state: SlotState, logits: Tensor) -> list[int]:
        batch = RowBatch.allocate(8, len(logits), CPU)
        batch.seq_slot.copy_(torch.arange(len(logits)))
        batch.seq_complete.fill_(1)
        ops.sample(state, batch, logits, Role.DRAFT)
        return state.next_token[: len(logits)].tolist()

    def test_each_slot_has_its_own_parameters(self) -> None:
        state = make_state()
        for slot, (temperature, top_k) in enumerate([(0.0, 0), (5.0, 1), (5.0, 0), (0.0, 0)]):
            request = toy_request("ab", temperature=temperature, top_k=top_k, seed=slot)
            fill_slot(state, slot, request, generation=1, age=1)
        logits = torch.randn(4, NUM_IDS, generator=torch.Generator().manual_seed(1))
        best = logits.argmax(-1).tolist()
        found = self.run(state, logits)
        assert found[0] == best[0] and found[1] == best[1] and found[3] == best[3]
        alone = make_state()
        fill_slot(alone, 0, toy_request("ab", temperature=5.0, seed=2), generation=7, age=3)
        assert self.run(alone, logits[2:3].clone()) == [found[2]]

    def test_an_incomplete_sequence_draws_nothing(self) -> None:
        state = make_state()
        fill_slot(state, 0, toy_request("ab"), generation=1, age=1)
        state.next_token[0] = 77
        batch = RowBatch.allocate(8, 1, CPU)
        ops.sample(state, batch, torch.zeros(1, NUM_IDS), Role.DRAFT)
        assert int(state.next_token[0]) == 77

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_logits_that_are_not_finite(self, value: float, temperature: float) -> None:
        state = make_state()
        for slot in range(2):
            fill_slot(state, slot, toy_request("ab", temperature=temperature), generation=1, age=1)
        logits = torch.zeros(2, NUM_IDS)
        logits[1, 4] = 9.0
        logits[0, 3] = value
        found = self.run(state, logits)
        assert found[0] == NOT_FINITE and (found[1] == 4 or temperature)


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
        ops.plan(state, batch, PER_PAGE)
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
        fill(state, 0, 9, Phase.DRAFT, age=3)
        fill(state, 1, 6, Phase.DRAFT, read=5, age=4)
        fill(state, 2, 7, Phase.DRAFT, age=1)
        fill(state, 3, 5, Phase.DRAFT, read=4, age=2)
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
        fill(state, 0, 12, Phase.DRAFT, age=1)  # needs four pages
        fill(state, 1, 7, Phase.DRAFT, age=2)  # needs three
        batch = self.run(state)
        assert batch.seq_slot.tolist() == [1]
        assert state.short.tolist() == [1, 0, 0, 0]
        assert int(state.num_pages[Role.DRAFT, 0]) == 0 and int(state.num_free) == 0

    def test_another_role_goes_on_when_the_first_is_short(self) -> None:
        state = make_state(num_pages=4)
        for slot in range(2):
            fill(state, slot, 15, Phase.DRAFT)
        fill(state, 2, 4, Phase.TARGET, read=3)
        batch = self.run(state)
        assert int(state.pass_role) == Role.TARGET and batch.seq_slot.tolist() == [2]
        assert state.short.tolist() == [1, 1, 0, 0]

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
            fill_slot(state, slot, request, generation=slot + 9, age=1)
        for i in range(12):
            slot, size = i % 4, rng.randint(0, 5)
            state.length[slot] = 3 + size
            state.tokens[slot, 3 : 3 + size] = torch.arange(size, dtype=torch.int32) + i
            state.token_logprob[slot, 3 : 3 + size] = -torch.arange(size) - 0.5
            reward = math.nan if i % 3 else i / 16
            kind = RecordKind(1 + i % 3)
            publish(state, slot, kind=kind, source=Role.TARGET, reward=reward, finish=i % 6)
            wanted.append((slot, slot + 9, kind, reward, Finish(i % 6), tuple(range(i, i + size))))
        records = drain(state)
        assert len(records) == 12 and int(state.log_head) == 0
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
        assert drain(state) == []
