"""Steps scored without a PRM: every executor, with little memory, decides as one request alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rsd_engine.core.engine_core import EngineCore
from rsd_engine.core.slots import SlotRequest
from rsd_kernels.state.enums import ConfidenceKind, Mode, Role
from tests.core.test_random_histories import make_request, score, writer
from tests.loop.executors.on_cpu import EXECUTORS
from tests.loop.toy import as_written, run, story, toy_core

WANTED = [
    ("abcdefgh"[: 1 + i % 8] * (1 + i % 3), i, i % 2 * 1.0, 30 - i, i % 4, Mode.RSD)
    for i in range(8)
]
SCORERS: dict[str, dict[str, Any]] = {
    "judge": {"tables": as_written("ij"), "prm_kv": Role.TARGET},
    "target's probe": {"tables": as_written(""), "prm_kv": Role.TARGET},
    "draft's probe": {"tables": as_written(""), "prm_kv": Role.DRAFT},
    "logprob": {"confidence": ConfidenceKind.LOGPROB, "prm_kv": Role.DRAFT},
    "entropy": {"confidence": ConfidenceKind.ENTROPY, "prm_kv": Role.DRAFT},
}


def core_of(scorer: str, executor: str, **options: Any) -> EngineCore:
    make_executor, row_buckets = EXECUTORS[executor]
    return toy_core(
        writer(b"draft"), writer(b"target"), score,
        make_executor=make_executor, row_buckets=row_buckets, max_rows=8,
        **SCORERS[scorer], **options,
    )  # fmt: skip


def requests_of(scorer: str) -> list[SlotRequest]:
    made = [make_request(wanted) for wanted in WANTED]
    if "confidence" in SCORERS[scorer]:
        return [replace(r, prm_prompt=(), prm_step_ids=0) for r in made]
    transient = SCORERS[scorer]["tables"].num_transient
    return [replace(r, prm_prompt=r.prompt, prm_step_ids=0, prm_transient=transient) for r in made]


@pytest.mark.parametrize("scorer", SCORERS)
def test_all_executors_decide_as_one_request_alone(scorer: str) -> None:
    requests = requests_of(scorer)
    alone = [story(run(core_of(scorer, "eager"), [request])[0]) for request in requests]
    lines = [line for lines in alone for line in lines]
    assert any(" rejected: " in line for line in lines)
    assert any(line.startswith("draft") and " kept: " in line for line in lines)
    pages = max(core_of(scorer, "eager").pages_for_request(request) for request in requests)
    for executor in EXECUTORS:
        core = core_of(scorer, executor, num_slots=4, num_pages=pages, ticks_per_launch=7)
        events = run(core, requests)
        assert [story(events[key]) for key in sorted(events)] == alone
        assert core.num_preemptions > 0
