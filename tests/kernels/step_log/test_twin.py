"""The twin of the step log: what was decided comes back as it went."""

from __future__ import annotations

import math
import random

import pytest
import torch

from rsd_engine.core.log_reader import LogReader, TornLogError
from rsd_engine.core.mailbox import open_mailbox
from rsd_engine.core.slots import fill_slot
from rsd_kernels.state.enums import LOG_HEADER, Finish, RecordKind, Role
from rsd_kernels.state.slots import SlotState
from rsd_kernels.step_log.twin import publish
from tests.kernels.harness.slots import make_state
from tests.loop.toy import toy_request


def test_records_come_back_as_they_went() -> None:
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
    for record, (slot, generation, kind, reward, finish, ids) in zip(records, wanted, strict=True):
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
    assert int(state.log_head) == int(state.log_end) == 0 and log.take() == []


def a_log() -> tuple[SlotState, LogReader]:
    """Two records of 9 + 1 words each."""
    state = make_state()
    fill_slot(state, 0, toy_request("abc"), generation=1, arrival=1)
    state.length[0] = 4
    for _ in range(2):
        publish(state, 0, kind=RecordKind.KEPT, source=Role.DRAFT, reward=0.5, finish=0)
    return state, LogReader(open_mailbox(state)[1])


@pytest.mark.parametrize("size", [0, LOG_HEADER - 1, 11, -1, 2**31 - 1])
def test_a_record_that_is_not_there(size: int) -> None:
    """It has the size 0 that was there before, or any word; the reader must not wait for ever."""
    state, log = a_log()
    state.log[10] = size
    wrong = f"at word 10 of the step log has size {size}; allowed: {LOG_HEADER} to 10, "
    with pytest.raises(TornLogError, match=wrong):
        log.take()


def test_an_old_record_does_not_pass_for_one_that_is_not_there() -> None:
    state, log = a_log()
    assert len(log.take()) == 2
    log.rewind()
    state.log_end.fill_(20)  # as if the words of the next launch were still on their way
    with pytest.raises(TornLogError, match="at word 0 of the step log has size 0"):
        log.take()
