"""Sampling in Triton against its twin, each token appended. Run by `test_kernel.py`."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from rsd_kernels.sample import twin
from rsd_kernels.sample.kernel import sample_append
from rsd_kernels.state.enums import MOVE_SHIFT, NOT_FINITE, Finish, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from rsd_kernels.state.tables import StepTables
from rsd_kernels.write.kernel import write
from tests.draw_oracle import distribution
from tests.kernels.harness.places import one_place_each
from tests.kernels.harness.shadow import (
    LOGPROBS,
    copied,
    copied_on_cpu,
    differences,
    differences_but_rounding,
    run_shadowed,
)
from tests.kernels.harness.tensors import DEVICE

CPU = torch.device("cpu")
ROW = 40


def a_state(num_slots: int, seed: int) -> SlotState:
    """Slots that ask for all kinds of sampling."""
    rng = random.Random(seed)
    state = SlotState.allocate(SlotSizes(num_slots, ROW, ROW, 4, 8, 64), CPU)
    for b in range(num_slots):
        state.length[b] = rng.randint(1, ROW - 1)
        state.tokens[b] = torch.tensor([rng.randrange(60) for _ in range(ROW)])
        state.min_length[b] = rng.choice([0, 0, ROW])
        state.stop_tokens[b] = -1
        state.stop_tokens[b, :3] = torch.tensor([5, 17, 10**6])
        state.temperature[b] = rng.choice([0.0, 0.6, 1.0, 1.7])
        state.top_k[b] = rng.choice([0, 0, 1, 5, 40, 10**6])
        state.top_p[b] = rng.choice([1.0, 1.0, 0.3, 0.9, 0.999])
        state.min_p[b] = rng.choice([0.0, 0.0, 0.05, 0.3])
        state.repetition_penalty[b] = rng.choice([1.0, 1.0, 1.3, 0.8])
        state.seed[b] = rng.randrange(2**63)
        state.sample_index[b] = rng.randint(0, 3)
        state.num_steps[b] = rng.randint(0, 9)
        state.num_logprobs[b] = rng.choice([-1, 0, 3, 20])
        state.length_limit[b] = rng.choice([ROW, ROW, int(state.length[b]) + 1])
        state.committed[b] = rng.randrange(int(state.length[b]))
        state.max_step_tokens[b] = rng.choice([ROW, 4])
        # To state 1, where one byte matches; to 0 by any other byte.
        state.delimiter_moves[b, :, ord("\n")] = 1 + (1 << MOVE_SHIFT)
        if b % 2:
            ask_for_more(state, b, random.Random(seed + b))
    return state


def ask_for_more(state: SlotState, b: int, rng: random.Random) -> None:
    """Biases, ids that may not be sampled, penalties of the output."""
    state.adjusts[b] = 1
    state.prompt_length[b] = rng.randint(1, int(state.length[b]))
    state.presence_penalty[b] = rng.choice([0.0, 0.5, -1.0])
    state.frequency_penalty[b] = rng.choice([0.0, 0.25, 2.0])
    count = rng.choice([0, 1, 20])
    state.num_biased[b] = count
    state.only_biased[b] = int(count == 20 and rng.random() < 0.7)
    state.biased_token[b, :count] = torch.tensor(rng.sample(range(60), count)).int()
    state.bias[b, :count] = torch.tensor([rng.uniform(-3, 3) for _ in range(count)])
    state.num_bad_words[b] = 4
    state.bad_words[b, :4] = -1
    length = int(state.length[b])
    for word, size in enumerate((1, 2, 3, 16)):
        before = state.tokens[b, max(length - size + 1, 0) : length]  # the word may be begun
        state.bad_words[b, word, -1] = rng.randrange(60)
        state.bad_words[b, word, -1 - len(before) : -1] = before


def some_tables(vocabulary: int) -> StepTables:
    """A byte a token, none of them to be cut."""

    def whole(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int32)

    return StepTables(
        token_byte=(torch.arange(vocabulary) % 256).to(torch.uint8),
        token_start=torch.arange(vocabulary + 1, dtype=torch.int32),
        prefix_entry=torch.full((vocabulary,), -1, dtype=torch.int32),
        prefix_start=whole(0),
        prefix_token=whole(),
        prm_token=torch.arange(vocabulary, dtype=torch.int32),
        separator=whole(0),
        before_step=whole(),
        num_transient=0,
        as_written=0,
    )


def a_batch(state: SlotState, seed: int, *, complete: bool = False) -> RowBatch:
    """The slots in another order; one of them is not complete, unless all shall be."""
    count = state.num_slots
    batch = RowBatch.allocate(count, count, CPU)
    batch.seq_slot.copy_(torch.randperm(count, generator=torch.Generator().manual_seed(seed)))
    batch.seq_complete.fill_(1)
    if count > 1 and not complete:
        batch.seq_complete[count // 2] = 0
    state.num_seqs.fill_(count)
    one_place_each(state, batch)
    return batch


def some_logits(num_seqs: int, vocabulary: int, scale: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(num_seqs, vocabulary + 3, generator=generator) * scale
    wide[:, vocabulary:] = torch.nan
    return wide[:, :vocabulary]


def sampled(state: SlotState, batch: RowBatch, logits: Tensor) -> tuple[SlotState, SlotState]:
    """The state as the twin leaves it, and as the kernel does."""
    theirs = copied(state)
    wide = torch.full((logits.shape[0] + 1, logits.shape[1] + 3), torch.nan)
    wide[:-1, :-3] = logits
    tables = some_tables(logits.shape[1])
    wide = wide.to(DEVICE)[:, :-3]
    drawn = copied(batch)
    sample_append(theirs, drawn, wide, copied(tables), Role.TARGET)
    twin.sample_append(state, batch, logits.clone(), tables, Role.TARGET)
    count = int(state.num_places)
    assert torch.equal(drawn.place_token[:count].cpu(), batch.place_token[:count])
    return state, theirs


@pytest.mark.parametrize(
    ("vocabulary", "scale", "seed"),
    [(1, 1.0, 0), (70, 2.0, 1), (70, 0.0, 2), (4096, 4.0, 3), (9001, 1.0, 5)],
)
def test_the_tokens_and_logprobs_of_the_twin(vocabulary: int, scale: float, seed: int) -> None:
    state = a_state(8, seed)
    if vocabulary < 20:  # else nothing would be left to sample
        state.min_length.zero_()
        state.adjusts.zero_()
    batch = a_batch(state, seed)
    ours, theirs = sampled(state, batch, some_logits(8, vocabulary, scale, seed))
    # Equal logits have no order of their own.
    loose = (*LOGPROBS, "top_token") if scale == 0 else LOGPROBS
    assert not set(differences(ours, theirs)) - set(loose)
    for name in LOGPROBS:
        torch.testing.assert_close(getattr(theirs, name).cpu(), getattr(ours, name))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite(bad: float) -> None:
    state = a_state(6, 9)
    batch = a_batch(state, 9)
    logits = some_logits(6, 5000, 1.0, 9)
    for s in range(0, 6, 2):
        logits[s, (4999, 0, 4096)[s // 2]] = bad
    ours, theirs = sampled(state, batch, logits)
    assert not differences_but_rounding(ours, theirs)
    assert int((theirs.finish == Finish.ERROR).sum()) >= 2
    assert (batch.place_token == NOT_FINITE).sum() == (theirs.finish == Finish.ERROR).sum()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_temperature_that_makes_logits_infinite(sign: float) -> None:
    """1e33 / 1e-6 is past float32: nothing is drawn, while greedy slots take the largest."""
    state = a_state(4, 3)
    state.adjusts.zero_()
    state.num_logprobs.fill_(-1)
    state.min_length.zero_()
    state.temperature.copy_(torch.tensor([1e-6, 0.0, 1e-6, 1.0]))
    batch = a_batch(state, 3, complete=True)
    logits = sign * (some_logits(4, 70, 1.0, 3).abs() + 1.0) * 1e33
    ours, theirs = sampled(state, batch, logits)
    assert not differences_but_rounding(ours, theirs)
    assert (theirs.finish == Finish.ERROR).tolist() == [True, False, True, False]


def test_no_token_is_left() -> None:
    state = a_state(4, 3)
    state.num_logprobs.fill_(-1)
    state.adjusts.fill_(1)
    state.num_biased.fill_(1)
    state.only_biased.copy_(torch.tensor([1, 0, 1, 0]))
    state.biased_token[:, 0] = 7
    state.bias.zero_()
    state.num_bad_words.fill_(1)
    state.bad_words[:, 0] = -1
    state.bad_words[:, 0, -1] = 7
    batch = a_batch(state, 3, complete=True)
    ours, theirs = sampled(state, batch, some_logits(4, 70, 1.0, 3))
    assert not differences_but_rounding(ours, theirs)
    assert (theirs.finish == Finish.ERROR).tolist() == [True, False, True, False]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    state = a_state(4, 11)
    state.temperature.fill_(1.0)
    logits = some_logits(4, 6000, 2.0, 11)
    batch = a_batch(state, 11)
    _, together = sampled(copied_on_cpu(state), batch, logits)
    for p, slot in enumerate(batch.place_slot[: int(state.num_places)].tolist()):
        alone = RowBatch.allocate(1, 1, CPU)
        alone.seq_slot.fill_(slot)
        alone.seq_complete.fill_(1)
        by_itself = copied_on_cpu(state)
        by_itself.num_seqs.fill_(1)
        one_place_each(by_itself, alone)
        _, by_itself = sampled(by_itself, alone, logits[p : p + 1])
        for name in ("tokens", "length", "finish", "ended", "token_logprob"):
            one, other = getattr(by_itself, name)[slot], getattr(together, name)[slot]
            assert torch.equal(one, other), name


def test_the_distribution() -> None:
    """The counts fit the probabilities (chi-square, p = 0.001); cut-offs are met exactly above."""
    count, vocabulary = 100, 4
    state = a_state(count, 0)
    for name, value in {
        "temperature": 0.9, "top_k": 0, "top_p": 1.0, "min_p": 0.05, "repetition_penalty": 1.0,
        "min_length": 0, "num_logprobs": -1, "seed": 7, "adjusts": 0,
    }.items():  # fmt: skip
        getattr(state, name).fill_(value)
    batch = a_batch(state, 0, complete=True)
    logits = some_logits(1, vocabulary, 1.5, 3)
    probabilities = torch.tensor(distribution(logits[0].tolist(), 0.9, min_p=0.05))
    counts = torch.zeros(vocabulary)
    device_state, device_batch = copied(state), copied(batch)
    tables = copied(some_tables(vocabulary))
    rounds = 1
    for step in range(rounds):
        device_state.num_steps.fill_(step)
        device_state.length.copy_(torch.arange(count) % (ROW - 1) + 1)
        device_batch.place_position.copy_(device_state.length[device_batch.place_slot.long()])
        device_state.sample_index.copy_(torch.arange(count) // (ROW - 1))
        rows = logits.repeat(count, 1).to(DEVICE)
        sample_append(device_state, device_batch, rows, tables, Role.DRAFT)
        counts += torch.bincount(device_batch.place_token.cpu(), minlength=vocabulary)
    expected = probabilities * rounds * count
    assert bool((counts[expected == 0] == 0).all())
    some = expected > 0
    assert int(some.sum()) > 2
    chi_square = ((counts - expected) ** 2 / expected)[some].sum().item()
    assert chi_square < 16.3, counts  # for 3 degrees of freedom; fewer have less


def test_every_state_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = run_shadowed(monkeypatch, {"write": write}, 5, count=3)
    assert calls["write"] > 5


def test_says_what_is_wrong() -> None:
    state = copied(a_state(3, 0))
    batch = copied(a_batch(a_state(3, 0), 0))
    logits = torch.zeros(3, 50, device=DEVICE)
    tables = copied(some_tables(50))
    for bad, message in (
        (logits.half(), "logits has dtype"),
        (logits[:2], "logits has shape"),
        (logits.t().contiguous().t(), "logits has strides"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_append(state, batch, bad, tables, Role.DRAFT)
    with pytest.raises(ValueError, match="role is 3"):
        sample_append(state, batch, logits, tables, 3)
