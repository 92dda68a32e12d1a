"""Accepting everything is the draft alone, rejecting everything the target alone."""

from __future__ import annotations

from typing import Any

import pytest

from rsd_engine.core.events import Event, StepDecided
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.state.enums import Mode, RecordKind
from tests.loop.test_mixture import DELIMITERS, draft, score, target
from tests.loop.toy import run, toy_core, toy_request


def kept(events: list[Event]) -> list[tuple[int, ...]]:
    return [e.token_ids for e in events if isinstance(e, StepDecided) and e.kind == RecordKind.KEPT]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("threshold", "mode"), [(0.0, Mode.DRAFT), (1.1, Mode.TARGET)])
def test_extreme_thresholds_equal_one_model_alone(
    temperature: float, threshold: float, mode: Mode
) -> None:
    core = toy_core(draft, target, score, num_slots=4)
    seeds = range(12)
    policy = (int(PolicyKind.THRESHOLD), threshold, 0.0)
    options: dict[str, Any] = {
        "temperature": temperature,
        "max_steps": 6,
        "max_tokens": 17,
        "delimiters": DELIMITERS,
    }
    rsd = [toy_request(seed=s, policy=policy, **options) for s in seeds]
    alone = [toy_request(seed=s, mode=mode, **options) for s in seeds]
    events = run(core, rsd + alone)
    for s in seeds:
        assert kept(events[s]) == kept(events[s + len(seeds)])
    if temperature:
        assert len({tuple(kept(events[s])) for s in seeds}) > 6
