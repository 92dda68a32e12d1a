"""The twin of sampling: filters against float64, and draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rsd_engine.core.slots import fill_slot
from rsd_kernels import ops
from rsd_kernels.sample import twin
from rsd_kernels.sample.twin import kept_scores
from rsd_kernels.state.enums import NOT_FINITE, Finish, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from tests.draw_oracle import distribution
from tests.kernels.harness.places import one_place_each
from tests.loop.toy import NUM_IDS, encode, toy_request, toy_tables


def make_state() -> SlotState:
    sizes = SlotSizes(
        num_slots=4, max_len=20, prm_max_len=40, pages_per_role=8, num_pages=8, log_words=8
    )
    return SlotState.allocate(sizes, torch.device("cpu"))


class TestSample:
    @pytest.mark.parametrize("top_k", [0, 1, 7, 50, 500])
    @pytest.mark.parametrize("top_p", [1.0, 0.9, 0.35, 0.01])
    @pytest.mark.parametrize("min_p", [0.0, 0.05, 0.5, 1.0])
    def test_filters(self, top_k: int, top_p: float, min_p: float) -> None:
        for seed, temperature in enumerate((0.3, 1.0, 1.7)):
            generator = torch.Generator().manual_seed(seed)
            logits = torch.randn(60, generator=generator) * 3
            scores = kept_scores(
                logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
            )
            wanted = distribution(logits.tolist(), temperature, top_k, top_p, min_p)
            assert float(scores.max()) == 0.0
            assert scores.double().softmax(-1).tolist() == pytest.approx(wanted, abs=1e-6)

    def run(self, state: SlotState, logits: Tensor) -> list[int]:
        batch = RowBatch.allocate(8, len(logits), torch.device("cpu"))
        batch.seq_slot.copy_(torch.arange(len(logits)))
        batch.seq_complete.fill_(1)
        state.num_seqs.fill_(len(logits))
        one_place_each(state, batch)
        ops.sample_append(state, batch, logits, toy_tables(), Role.DRAFT)
        return batch.place_token.tolist()

    def test_each_slot_has_its_own_parameters(self) -> None:
        state = make_state()
        for slot, (temperature, top_k) in enumerate([(0.0, 0), (5.0, 1), (5.0, 0), (0.0, 0)]):
            request = toy_request("ab", temperature=temperature, top_k=top_k, seed=slot)
            fill_slot(state, slot, request, generation=1, arrival=1)
        logits = torch.randn(4, NUM_IDS, generator=torch.Generator().manual_seed(1))
        best = logits.argmax(-1).tolist()
        found = self.run(state, logits)
        assert found[0] == best[0] and found[1] == best[1] and found[3] == best[3]
        alone = make_state()
        fill_slot(alone, 0, toy_request("ab", temperature=5.0, seed=2), generation=7, arrival=3)
        assert self.run(alone, logits[2:3].clone()) == [found[2]]

    def test_an_incomplete_sequence_draws_nothing(self) -> None:
        state = make_state()
        fill_slot(state, 0, toy_request("ab"), generation=1, arrival=1)
        batch = RowBatch.allocate(8, 1, torch.device("cpu"))
        state.num_seqs.fill_(1)
        one_place_each(state, batch)
        before = state.length.clone()
        ops.sample_append(state, batch, torch.zeros(1, NUM_IDS), toy_tables(), Role.DRAFT)
        assert torch.equal(state.length, before)

    @pytest.mark.parametrize("token", [NUM_IDS, NUM_IDS + 1, 2**31 - 1, -2])
    def test_a_token_past_the_vocabulary_is_not_appended(
        self, token: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever drew it: the slot ends with an error, its neighbour goes on."""
        state = make_state()
        for slot in range(2):
            request = toy_request("ab", temperature=1.0, top_p=0.9, seed=slot)
            fill_slot(state, slot, request, generation=1, arrival=1)
        drawn = iter([token, 5])
        monkeypatch.setattr(twin, "_choose", lambda *args, **kwargs: next(drawn))
        self.run(state, torch.zeros(2, NUM_IDS))
        assert state.length[:2].tolist() == [2, 3]
        assert state.finish[:2].tolist() == [Finish.ERROR, Finish.NONE]
        assert state.ended[:2].tolist() == [1, 0] and int(state.tokens[1, 2]) == 5

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_logits_that_are_not_finite(self, value: float, temperature: float) -> None:
        state = make_state()
        for slot in range(2):
            fill_slot(
                state, slot, toy_request("ab", temperature=temperature), generation=1, arrival=1
            )
        logits = torch.zeros(2, NUM_IDS)
        logits[1, 4] = 9.0
        logits[0, 3] = value
        found = self.run(state, logits)
        assert found[0] == NOT_FINITE and (found[1] == 4 or temperature)
        assert state.length[:2].tolist() == [2, 3]
        assert int(state.finish[0]) == Finish.ERROR


def test_given_ids_are_read_like_sampled_ones() -> None:
    """Up to the end of the step; what follows is not taken."""
    ids = encode("c.\n\nde")
    given, sampled = make_state(), make_state()
    for state in (given, sampled):
        for slot in range(2):
            fill_slot(state, slot, toy_request("ab"), generation=1, arrival=1)
    parts = (ids[:2], ids[2:])
    taken = [ops.append_given(given, 1, part, toy_tables(), Role.TARGET) for part in parts]
    batch = RowBatch.allocate(8, 1, torch.device("cpu"))
    batch.seq_slot[0] = batch.seq_complete[0] = 1
    sampled.num_seqs.fill_(1)
    for token in ids[: sum(taken)]:
        assert not int(sampled.ended[1])
        logits = torch.nn.functional.one_hot(torch.tensor([token]), NUM_IDS).float()
        one_place_each(sampled, batch)
        ops.sample_append(sampled, batch, logits, toy_tables(), Role.TARGET)
    assert taken[0] == 2 and sum(taken) < len(ids) and int(given.ended[1])
    for name in ("tokens", "length", "ended", "finish", "match_bytes", "step_source"):
        assert torch.equal(getattr(given, name), getattr(sampled, name))
    for name in ("delimiter_state", "stop_state"):
        assert torch.equal(getattr(given, name), getattr(sampled, name))
