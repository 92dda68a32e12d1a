"""The twin of the step log: what was decided comes back as it went."""

from __future__ import annotations

import math
import random

import torch

from rsd_engine.core.log_reader import LogReader
from rsd_engine.core.mailbox import open_mailbox
from rsd_engine.core.slots import fill_slot
from rsd_kernels.state.enums import Finish, RecordKind, Role
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
    assert int(state.log_head) == 0 and log.take() == []
