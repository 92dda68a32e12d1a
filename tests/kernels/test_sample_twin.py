"""Random numbers and draws: known answers, every part of the key, filters against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd_engine.core.slots import fill_slot
from rsd_kernels import ops
from rsd_kernels.philox.twin import philox, uniform
from rsd_kernels.sample.twin import filtered_probabilities
from rsd_kernels.state.enums import NOT_FINITE, Finish, Purpose, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from tests.loop.toy import NUM_IDS, toy_request, toy_tables

ONES = 0xFFFFFFFF


def make_state() -> SlotState:
    sizes = SlotSizes(
        num_slots=4, max_len=20, prm_max_len=40, pages_per_role=8, num_pages=8, log_words=8
    )
    return SlotState.allocate(sizes, torch.device("cpu"))


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
        batch = RowBatch.allocate(8, len(logits), torch.device("cpu"))
        batch.seq_slot.copy_(torch.arange(len(logits)))
        batch.seq_complete.fill_(1)
        state.num_seqs.fill_(len(logits))
        ops.sample_append(state, batch, logits, toy_tables(), Role.DRAFT)
        return state.next_token[: len(logits)].tolist()

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
        state.next_token[0] = 77
        batch = RowBatch.allocate(8, 1, torch.device("cpu"))
        state.num_seqs.fill_(1)
        before = state.length.clone()
        ops.sample_append(state, batch, torch.zeros(1, NUM_IDS), toy_tables(), Role.DRAFT)
        assert int(state.next_token[0]) == 77
        assert torch.equal(state.length, before)

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
