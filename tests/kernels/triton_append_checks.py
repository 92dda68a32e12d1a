"""Append and bridge in Triton against their twins, over real tokenizers of toy size.

Run by `test_triton_control.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from rsd_engine.steps.automaton import build_automaton
from rsd_kernels import append as append_kernel
from rsd_kernels import bridge as bridge_kernel
from rsd_kernels.reference import append as append_twin
from rsd_kernels.reference import bridge as bridge_twin
from rsd_kernels.reference import tail as tail_twin
from rsd_kernels.row_batch import RowBatch
from rsd_kernels.slot_state import (
    MAX_DELIMITER_STATES,
    MAX_STOP_STATES,
    Finish,
    Mode,
    Role,
    SlotLimits,
    SlotState,
)
from rsd_kernels.tail_tables import TailTables
from tests.kernels.triton_child import DEVICE
from tests.kernels.triton_shadow import copied, differences, run_shadowed
from tests.steps.test_prm_tokens import FAMILIES, PARTS, Family
from tests.steps.toy_tokenizers import corpus

CPU = torch.device("cpu")
SLOTS = 6
BEYOND = b"\n\n\n"  # in a token that runs past a blank line
ROW = 150


def a_state(made: Family, rng: random.Random, prm_row_len: int) -> SlotState:
    state = SlotState.allocate(SlotLimits(SLOTS, ROW, prm_row_len, 4, 8, 64), CPU)
    for b in range(SLOTS):
        state.mode[b] = Mode.DRAFT if b == 1 else Mode.RSD
        state.max_step_tokens[b] = rng.choice([3, 100, 100, 100])
        state.min_length[b] = rng.choice([0, 0, 20])
        state.limit[b] = ROW - 8
        state.stop_tokens[b] = -1
        state.stop_tokens[b, 0] = made.vocabulary.num_tokens - 1
        state.num_logprobs[b] = rng.choice([-1, 2])
        stops = build_automaton([".\n", "zz"] if b % 3 == 0 else [], MAX_STOP_STATES, "stop")
        delimiters = build_automaton(
            [".", "\n\n"] if b == 2 else ["\n\n"], MAX_DELIMITER_STATES, "step_delimiters"
        )
        for rows, matches, automaton in (
            (state.delimiter_next, state.delimiter_match, delimiters),
            (state.stop_next, state.stop_match, stops),
        ):
            states = automaton.next.shape[0]
            rows[b, :states] = automaton.next
            matches[b, :states] = automaton.match
    state.token_logprob.normal_()
    state.top_logprob.normal_()
    state.top_token.random_(0, 99)
    return state


def token_stream(made: Family, rng: random.Random) -> Iterator[int]:
    """Text as the tokenizer writes it, with any other id now and then, and bad logits."""
    while True:
        text = rng.choice(corpus())
        start = rng.randrange(len(text) // 2)
        signs = "".join(rng.choice(PARTS) for _ in range(5)) + "\n\n"
        for token in made.tokenizer.encode(text[start : start + 40] + signs).ids:
            if rng.random() < 0.06:
                beyond = [i for i, data in enumerate(made.vocabulary.token_bytes) if BEYOND in data]
                yield rng.choice([-1, rng.randrange(made.vocabulary.num_tokens), *beyond[:4]])
            yield token


def restart_ended(state: SlotState) -> None:
    """What settle would do, and a new request where the output has ended."""
    for b in range(SLOTS):
        if not int(state.ended[b]):
            continue
        state.committed[b] = state.length[b]
        state.prm_committed[b] = state.prm_length[b]
        state.stop_committed[b] = state.stop_state[b]
        if int(state.finish[b]) or int(state.length[b]) > ROW - 20:
            for name in ("length", "committed", "prm_length", "prm_committed", "stop_state"):
                getattr(state, name)[b] = 0
        for name in ("delimiter_state", "match_bytes", "finish", "ended"):
            getattr(state, name)[b] = 0


@pytest.mark.parametrize(("name", "prm_row_len"), [("qwen", 300), ("math", 300), ("smollm", 40)])
def test_steps_of_text(name: str, prm_row_len: int, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = count_merged_words(monkeypatch)
    made = FAMILIES[name]
    assert made.tail is not None
    rng = random.Random(name)
    state = a_state(made, rng, prm_row_len)
    streams = [token_stream(made, rng) for _ in range(SLOTS)]
    plain = made.tables
    if name == "math":  # two tokens for every prefix: no tokenizer of toy size has such
        plain = replace(
            plain,
            prefix_start=plain.prefix_start * 2,
            prefix_token=plain.prefix_token.repeat_interleave(2),
        )
    tables, tail = copied(plain), copied(made.tail)
    finishes, replaced = set(), [0, 0]
    for _ in range(60):
        batch = RowBatch.allocate(SLOTS, SLOTS, CPU)
        batch.seq_slot.copy_(torch.tensor(rng.sample(range(SLOTS), SLOTS)))
        batch.seq_complete.copy_(torch.tensor([rng.random() < 0.9 for _ in range(SLOTS)]))
        state.num_seqs.fill_(SLOTS)
        state.next_token.copy_(torch.tensor([next(stream) for stream in streams]))
        theirs, before = copied(state), state.length.clone()
        append_twin.append(state, batch, plain, Role.DRAFT)
        append_kernel.append(theirs, copied(batch), tables, Role.DRAFT)
        assert not differences(state, theirs)
        for b in batch.seq_slot[batch.seq_complete != 0].tolist():
            count = int(state.length[b] - before[b])
            if count and int(state.tokens[b, before[b]]) != int(state.next_token[b]):
                replaced[count > 1] += 1
        bridge_twin.bridge(state, plain, made.tail)
        bridge_kernel.bridge(theirs, tables, tail)
        same_rows(state, theirs)
        finishes |= set(state.finish.tolist())
        restart_ended(state)
    assert {Finish.ERROR, Finish.STOP_STRING} <= finishes
    assert name == "smollm" or replaced[name == "math"]
    assert merged or name == "smollm"  # whose delimiter never shares a word with text
    assert (Finish.PRM_FULL in finishes) == (prm_row_len == 40)


def count_merged_words(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every word that the twin merges anew from now on."""
    sizes: list[int] = []
    merge = tail_twin.merge_bytes

    def counted(data: list[int], tail: TailTables) -> list[int]:
        sizes.append(len(data))
        return merge(data, tail)

    monkeypatch.setattr(tail_twin, "merge_bytes", counted)
    return sizes


def same_rows(ours: SlotState, theirs: SlotState) -> None:
    """A step that does not fit may leave parts behind its row's end."""
    for b in range(SLOTS):
        end = int(ours.prm_length[b])
        assert torch.equal(ours.prm_tokens[b, :end], theirs.prm_tokens[b, :end].cpu())
    assert not set(differences(ours, theirs)) - {"prm_tokens"}


def test_long_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that is merged anew in more than one turn, and one too long for it."""
    made = FAMILIES["qwen"]
    assert made.tail is not None
    merged = count_merged_words(monkeypatch)
    byte = {data: i for i, data in enumerate(made.vocabulary.token_bytes) if len(data) == 1}
    for word in ("$}" * 70 + "$", "$" * 200 + ".", ".)" * 600):
        ids = [byte[c.encode()] for c in word]
        ended = next(i for i, data in enumerate(made.vocabulary.token_bytes) if data == b".\n\n")
        limits = SlotLimits(1, 1300, 1300, 4, 8, 64)
        state = SlotState.allocate(limits, CPU)
        state.tokens[0, : len(ids) + 1] = torch.tensor([*ids, ended])
        state.length.fill_(len(ids) + 1)
        state.ended.fill_(1)
        state.match_bytes.fill_(2)
        theirs = copied(state)
        bridge_twin.bridge(state, made.tables, made.tail)
        bridge_kernel.bridge(theirs, copied(made.tables), copied(made.tail))
        end = int(state.prm_length)
        assert end > 1
        assert torch.equal(state.prm_tokens[0, :end], theirs.prm_tokens[0, :end].cpu())
        assert not set(differences(state, theirs)) - {"prm_tokens"}
    assert merged == [142, 202]


def test_every_state_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {"append": append_kernel.append, "bridge": bridge_kernel.bridge}
    calls = run_shadowed(monkeypatch, kernels, 2, count=6)
    assert min(calls.values()) > 20


def test_wait_for_host() -> None:
    state = SlotState.allocate(SlotLimits(4, 8, 8, 4, 8, 64), CPU)
    state.ended.copy_(torch.tensor([1, 1, 0, 1]))
    state.mode.copy_(torch.tensor([Mode.RSD, Mode.DRAFT, Mode.RSD, Mode.RSD]))
    state.finish.copy_(torch.tensor([0, 0, 0, Finish.ERROR]))
    theirs = copied(state)
    bridge_twin.wait_for_host(state)
    bridge_kernel.wait_for_host(theirs)
    assert not differences(state, theirs)


def test_says_what_is_wrong() -> None:
    made = FAMILIES["qwen"]
    state = copied(a_state(made, random.Random(0), 40))
    batch = copied(RowBatch.allocate(SLOTS, SLOTS, CPU))
    with pytest.raises(ValueError, match="role is -1"):
        append_kernel.append(state, batch, copied(made.tables), -1)
    if DEVICE.type == "cuda":
        with pytest.raises(ValueError, match="token_byte is on cpu"):
            append_kernel.append(state, batch, made.tables, Role.DRAFT)
