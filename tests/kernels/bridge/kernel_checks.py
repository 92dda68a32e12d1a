"""Sampling with append, and bridge, in Triton against their twins: real tokenizers of toy size.

Run by `test_kernel.py`.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rsd_engine.steps.automaton import build_automaton
from rsd_kernels.bridge import merge_twin as tail_twin
from rsd_kernels.bridge import twin as bridge_twin
from rsd_kernels.sample import twin as sample_append_twin
from rsd_kernels.sample.kernel import sample_append
from rsd_kernels.state.enums import MAX_STOP_STATES, Finish, Mode, Phase, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotSizes, SlotState
from rsd_kernels.state.tables import BY_TEXT, MergeTables
from rsd_kernels.write.kernel import write
from tests.kernels.bridge.texts import (
    CPU,
    SLOTS,
    a_state,
    around_steps,
    logits_of,
    restart_ended,
    token_stream,
    two_for_one,
)
from tests.kernels.harness import parts
from tests.kernels.harness.places import one_place_each
from tests.kernels.harness.shadow import (
    LOGPROBS,
    Op,
    copied,
    differences,
    differences_but_rounding,
    run_shadowed,
)
from tests.kernels.harness.tensors import DEVICE
from tests.steps.test_prm_tokens import FAMILIES, Family


def replaced_by(state: SlotState, batch: RowBatch, before: Tensor, slot: int) -> int:
    """How many tokens replaced the one drawn; 0 if it was kept."""
    [place] = (batch.place_slot[: int(state.num_places)] == slot).nonzero().flatten().tolist()
    first = int(before[slot])
    count = int(state.length[slot]) - first
    same = count == 0 or int(state.tokens[slot, first]) == int(batch.place_token[place])
    return 0 if same else count


@pytest.mark.parametrize(("name", "prm_max_len"), [("qwen", 300), ("math", 300), ("smollm", 25)])
def test_steps_of_text(name: str, prm_max_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = count_merged_words(monkeypatch)
    made = FAMILIES[name]
    assert made.merges is not None
    rng = random.Random(name)
    state = a_state(made, rng, prm_max_len)
    streams = [token_stream(made, rng) for _ in range(SLOTS)]
    plain = around_steps(two_for_one(made.tables)) if name == "math" else made.tables
    tables, merges = copied(plain), copied(made.merges)
    finishes, modes, replaced = set(), set(), [0, 0]
    for _ in range(40):
        batch = RowBatch.allocate(SLOTS, SLOTS, CPU)
        batch.seq_slot.copy_(torch.tensor(rng.sample(range(SLOTS), SLOTS)))
        batch.seq_complete.copy_(torch.tensor([rng.random() < 0.9 for _ in range(SLOTS)]))
        state.num_seqs.fill_(SLOTS)
        one_place_each(state, batch)
        theirs, before = copied(state), state.length.clone()
        drawn = {b: next(streams[b]) for b in batch.seq_slot.tolist()}
        places = batch.place_slot[: int(state.num_places)].tolist()
        wanted = [drawn[b] for b in (*places, *(drawn.keys() - set(places)))]
        logits = logits_of(wanted, made.vocabulary.num_tokens)
        device_logits = logits.to(DEVICE, copy=True)
        sample_append_twin.sample_append(state, batch, logits, plain, Role.DRAFT)
        sample_append(theirs, copied(batch), device_logits, tables, Role.DRAFT)
        assert not differences_but_rounding(state, theirs)
        for b in batch.seq_slot[batch.seq_complete != 0].tolist():
            count = replaced_by(state, batch, before, b)
            if count:
                replaced[count > 1] += 1
        bridge_twin.bridge(state, plain, made.merges)
        parts.bridge(theirs, tables, merges)
        same_rows(state, theirs)
        finishes |= set(state.finish.tolist())
        modes |= set(zip(state.overflow_mode.tolist(), state.mode.tolist(), strict=True))
        restart_ended(state)
    assert {Finish.ERROR, Finish.STOP_STRING} <= finishes
    assert name == "smollm" or replaced[name == "math"]
    assert merged or name == "smollm"  # whose delimiter never shares a word with text
    assert (Finish.PRM_FULL in finishes) == (prm_max_len == 25)
    assert ({(m, m) for m in (Mode.TARGET, Mode.DRAFT)} <= modes) == (prm_max_len == 25)


def count_merged_words(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every word that the twin merges anew from now on."""
    sizes: list[int] = []
    merge = tail_twin.merge_bytes

    def counted(data: list[int], merges: MergeTables) -> list[int]:
        sizes.append(len(data))
        return merge(data, merges)

    monkeypatch.setattr(tail_twin, "merge_bytes", counted)
    return sizes


def same_rows(ours: SlotState, theirs: SlotState) -> None:
    """A step that does not fit may leave parts behind its row's end."""
    for b in range(SLOTS):
        end = int(ours.prm_length[b])
        assert torch.equal(ours.prm_tokens[b, :end], theirs.prm_tokens[b, :end].cpu())
    assert not set(differences(ours, theirs)) - {"prm_tokens", *LOGPROBS}


def a_mixed_pass(made: Family, rng: random.Random) -> tuple[SlotState, RowBatch]:
    """Every other sequence draws; one is incomplete, one padding. No logprobs: all else is exact.

    Slot 0 stops where a step would end, slot 5 has room for one token.
    """
    state = a_state(made, rng, 300)
    state.num_logprobs.fill_(-1)
    state.max_step_tokens.fill_(100)
    state.temperature.copy_(torch.arange(SLOTS) % 2)
    state.length.copy_(torch.tensor([rng.randint(1, 40) for _ in range(SLOTS)]))
    state.tokens.random_(0, 200)
    stops = build_automaton(["\n\n"], MAX_STOP_STATES, "stop")
    state.stop_moves[0, : stops.next.shape[0]] = stops.moves
    state.length_limit[5] = state.length[5] + 1
    batch = RowBatch.allocate(SLOTS, SLOTS, CPU)
    batch.seq_slot.copy_(torch.tensor(rng.sample(range(SLOTS), SLOTS)))
    batch.seq_complete.fill_(1)
    batch.seq_complete[rng.randrange(SLOTS - 1)] = 0
    state.num_seqs.fill_(SLOTS - 1)
    one_place_each(state, batch)
    return state, batch


@pytest.mark.parametrize(("name", "pieces"), [("qwen", 1), ("math", 2)])
def test_greedy_and_drawn_sequences_cut_in_one_pass(name: str, pieces: int) -> None:
    """Tokens with a delimiter inside, drawn by one sequence and the most likely of another."""
    made, rng = FAMILIES[name], random.Random(name)
    plain = two_for_one(made.tables) if name == "math" else made.tables
    tables = copied(plain)
    inside = [b"\n\n" in data[:-1] for data in made.vocabulary.token_bytes]
    torch.manual_seed(0)
    cut_together, seen = 0, set()
    for turn in range(16):
        state, batch = a_mixed_pass(made, rng)
        logits = torch.randn(SLOTS, made.vocabulary.num_tokens) + torch.tensor(inside) * 6.0
        if turn % 2:
            logits[turn % (SLOTS - 1), 7] = torch.nan
        theirs, before = copied(state), state.length.clone()
        device_logits = logits.to(DEVICE, copy=True)
        sample_append_twin.sample_append(state, batch, logits, plain, Role.TARGET)
        sample_append(theirs, copied(batch), device_logits, tables, Role.TARGET)
        assert not differences(state, theirs)
        drawn = batch.place_slot[: int(state.num_places)].tolist()
        cut = [b for b in sorted(drawn) if replaced_by(state, batch, before, b) == pieces]
        cut_together += {bool(state.temperature[b] > 0) for b in cut} == {True, False}
        seen |= {(b, int(state.finish[b]), b in cut) for b in range(SLOTS)}
    assert cut_together > 2
    assert {(0, Finish.STOP_STRING, False), (5, Finish.LENGTH, pieces == 1)} <= seen
    assert Finish.ERROR in {finish for _, finish, _ in seen}


def an_ended_step(made: Family, word: str, prm_max_len: int) -> SlotState:
    """One slot whose step is a word, a byte a token, and then a token of `.` and a blank line."""
    byte = {data: i for i, data in enumerate(made.vocabulary.token_bytes) if len(data) == 1}
    ids = [byte[c.encode()] for c in word]
    ended = next(i for i, data in enumerate(made.vocabulary.token_bytes) if data == b".\n\n")
    state = SlotState.allocate(SlotSizes(1, 1300, prm_max_len, 4, 8, 64), CPU)
    state.tokens[0, : len(ids) + 1] = torch.tensor([*ids, ended])
    state.length.fill_(len(ids) + 1)
    state.ended.fill_(1)
    state.match_bytes.fill_(2)
    return state


def test_long_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that is merged anew in more than one turn, and one too long for it."""
    made = FAMILIES["qwen"]
    assert made.merges is not None
    merged = count_merged_words(monkeypatch)
    for word in ("$}" * 70 + "$", "$" * 200 + ".", ".)" * 600):
        state = an_ended_step(made, word, 1300)
        theirs = copied(state)
        bridge_twin.bridge(state, made.tables, made.merges)
        parts.bridge(theirs, copied(made.tables), copied(made.merges))
        end = int(state.prm_length)
        assert end > 1
        assert torch.equal(state.prm_tokens[0, :end], theirs.prm_tokens[0, :end].cpu())
        assert not set(differences(state, theirs)) - {"prm_tokens"}
    assert merged == [142, 202]


def test_missing_tokens_wait_for_the_host() -> None:
    """One in the step's middle, one that its delimiter begins in; not one that is a stop token."""
    made = FAMILIES["qwen"]
    assert made.merges is not None
    ended = next(i for i, data in enumerate(made.vocabulary.token_bytes) if data == b".\n\n")
    byte = {data: i for i, data in enumerate(made.vocabulary.token_bytes) if len(data) == 1}
    for missing, stops, waits in ((b"b", False, True), (b".", False, True), (b"z", False, False),
                                  (b"c", True, False), (b"c", False, True)):  # fmt: skip
        tables = replace(made.tables, prm_token=made.tables.prm_token.clone())
        tables.prm_token[byte[missing]] = BY_TEXT
        state = an_ended_step(made, "ab", 300)
        if missing == b"c":  # in the delimiter's place
            state.tokens[0, 2] = byte[b"c"]
            state.match_bytes.zero_()
            state.finish.fill_(Finish.STOP_TOKEN if stops else Finish.LENGTH)
        else:
            assert int(state.tokens[0, 2]) == ended
        theirs = copied(state)
        bridge_twin.bridge(state, tables, made.merges)
        parts.bridge(theirs, copied(tables), copied(made.merges))
        assert not set(differences(state, theirs)) - {"prm_tokens"}
        assert (int(state.phase) == Phase.WAIT_HOST) == waits == (int(state.prm_length) == 0)


def test_every_state_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: dict[str, Op] = {"write": write}
    calls = run_shadowed(monkeypatch, kernels, 3, count=7)
    assert min(calls.values()) > 20


def test_wait_for_host() -> None:
    state = SlotState.allocate(SlotSizes(4, 8, 8, 4, 8, 64), CPU)
    state.ended.copy_(torch.tensor([1, 1, 0, 1]))
    state.mode.copy_(torch.tensor([Mode.RSD, Mode.DRAFT, Mode.RSD, Mode.RSD]))
    state.finish.copy_(torch.tensor([0, 0, 0, Finish.ERROR]))
    theirs = copied(state)
    bridge_twin.wait_for_host(state)
    parts.wait_for_host(theirs)
    assert not differences(state, theirs)


def test_says_what_is_wrong() -> None:
    made = FAMILIES["qwen"]
    state = copied(a_state(made, random.Random(0), 40))
    batch = copied(RowBatch.allocate(SLOTS, SLOTS, CPU))
    logits = torch.zeros(SLOTS, made.vocabulary.num_tokens, device=DEVICE)
    with pytest.raises(ValueError, match=f"room for 7 sequences; allowed: at most {SLOTS}"):
        sample_append(state, copied(RowBatch.allocate(7, 7, CPU)), logits, copied(made.tables), 0)
    with pytest.raises(ValueError, match="role is -1"):
        sample_append(state, batch, logits, copied(made.tables), -1)
    if DEVICE.type == "cuda":
        with pytest.raises(ValueError, match="token_byte is on cpu"):
            sample_append(state, batch, logits, made.tables, Role.DRAFT)
