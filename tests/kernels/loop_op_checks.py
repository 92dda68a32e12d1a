"""The kernels of the loop against their twins, in whole runs. Run by `test_loop_ops.py`."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from rsd_engine.steps.selection import GSI, Beam, Best, Softmax
from rsd_kernels import ops
from rsd_kernels.bridge import twin as bridge_twin
from rsd_kernels.end_step import kernel as end_step_kernel
from rsd_kernels.fork import kernel as fork_kernel
from rsd_kernels.guess import kernel as guess_kernel
from rsd_kernels.schedule import kernel as schedule_kernel
from rsd_kernels.schedule import twin as schedule_twin
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import NUM_ROLES, ConfidenceKind, Finish, Mode, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.state.tables import StepTables
from rsd_kernels.write import kernel as write_kernel
from tests.kernels.harness.child import INTERPRETED
from tests.kernels.harness.shadow import (
    Op,
    Shadow,
    copied,
    copied_on_cpu,
    differences,
    make_rare,
    random_core,
    random_requests,
    run_shadowed,
)
from tests.loop.toy import run, story, toy_request


def test_every_state_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: dict[str, Op] = {"schedule": schedule_kernel.schedule, "write": write_kernel.write}
    calls = run_shadowed(monkeypatch, kernels, 1, count=10, ends="device")
    calls += run_shadowed(monkeypatch, kernels, 2, count=3)
    assert all(calls[name] > 0 for name in kernels), calls


def test_full_prm_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that end there, and outputs that draft or target continue."""
    modes: Counter[tuple[int, int]] = Counter()
    write = bridge_twin.write_prm_step

    def counted(state: SlotState, slot: int, tokens: list[int], tables: StepTables) -> None:
        write(state, slot, tokens, tables)
        modes[int(state.overflow_mode[slot]), int(state.finish[slot])] += int(state.mode[slot]) or (
            int(state.finish[slot]) == Finish.PRM_FULL
        )

    monkeypatch.setattr(bridge_twin, "write_prm_step", counted)
    shadow = Shadow(monkeypatch, {"write": write_kernel.write})
    requests = [
        replace(
            toy_request("abc", temperature=1.0, seed=i + 5, max_tokens=24, max_step_tokens=5),
            overflow_mode=mode,
        )
        for i, mode in enumerate([*Mode] * 4)
    ]
    run(random_core(3, prm_max_len=14), requests)
    assert shadow.calls["write"] > 20
    assert {mode for (mode, _), count in modes.items() if count} == set(Mode), modes
    assert modes[Mode.RSD, Finish.PRM_FULL], modes


def test_guesses_in_every_state_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSD_DEBUG_KERNELS", "1")  # the values are checked too
    kernels: dict[str, Op] = {
        "guess": guess_kernel.guess,
        "schedule": schedule_kernel.schedule,
        "write": write_kernel.write,
    }
    calls = run_shadowed(monkeypatch, kernels, 4, count=4, max_guesses=5, ends="device")
    assert min(calls.values()) > 10, calls


@pytest.mark.parametrize(
    ("kind", "ends"), [(ConfidenceKind.LOGPROB, "device"), (ConfidenceKind.ENTROPY, "host")]
)
def test_confidence_in_every_state_of_a_run(
    kind: ConfidenceKind, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels: dict[str, Op] = {"write": write_kernel.write}
    calls = run_shadowed(monkeypatch, kernels, 4, count=4, confidence=kind, ends=ends)
    assert min(calls.values()) > 10, calls


def test_candidates_in_every_state_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that share a prompt, and steps that are chosen among candidates in every way."""
    kernels: dict[str, Op] = {
        "schedule": schedule_kernel.schedule,
        "write": write_kernel.write,
        "end_slot_step": end_step_kernel.end_slot_step,
        "fork": fork_kernel.fork,
    }
    shadow = Shadow(monkeypatch, kernels)
    selections = (Best(), Softmax(2.0), GSI(5.0, 0.5), Beam(2))
    requests = [
        replace(
            toy_request("abcdef"[i:] * 3, temperature=1.0, seed=i, max_tokens=9, max_step_tokens=4),
            step_candidates=2, select=select,
        )
        for i, select in enumerate(selections)
    ]  # fmt: skip
    requests += [
        replace(requests[0], step_candidates=1, select=None, sample_index=i) for i in (1, 2)
    ]
    run(random_core(0, num_slots=6), requests)
    assert min(shadow.calls.values()) > 5 and shadow.calls.keys() == kernels.keys(), shadow.calls


def test_every_state_of_a_run_with_two_vocabularies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejected steps wait for the host, and so do all that end."""
    kernels: dict[str, Op] = {
        "schedule": schedule_kernel.schedule,
        "write": write_kernel.write,
        "end_slot_step": end_step_kernel.end_slot_step,
    }
    calls = run_shadowed(monkeypatch, kernels, 1, count=6, two=True)
    assert all(calls[name] > 0 for name in kernels), calls


@pytest.mark.parametrize("rule", BatchingRule)
def test_schedule_in_changed_states(rule: BatchingRule, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    chosen: Counter[int] = Counter()
    schedule_of_the_run = schedule_twin.schedule

    def schedule(
        state: SlotState, batch: RowBatch, tokens_per_page: Any, _: BatchingRule, prm_kv: Role
    ) -> None:
        ours, theirs = copied_on_cpu(state), copied_on_cpu(batch)
        make_rare(ours, rng)
        kernel_state, kernel_batch = copied(ours), copied(theirs)
        schedule_twin.schedule(ours, theirs, tokens_per_page, rule, prm_kv)
        schedule_kernel.schedule(kernel_state, kernel_batch, tokens_per_page, rule, prm_kv)
        assert not differences(ours, kernel_state) + differences(theirs, kernel_batch)
        chosen[int(ours.pass_role)] += 1
        schedule_of_the_run(state, batch, tokens_per_page, rule, prm_kv)

    monkeypatch.setattr(ops, "schedule", schedule)
    run(random_core(6, num_slots=17, max_rows=7), random_requests(6, 12))
    assert min(chosen[role] for role in range(NUM_ROLES + 1)) > 1, chosen


def test_a_run_on_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through `ops`: the same steps, rewards and decisions as on the twins."""
    requests = random_requests(4, 3, logprobs=False)

    def told() -> list[list[str]]:
        events = run(random_core(4), requests)
        return [story(events[key]) for key in sorted(events)]

    by_twins = told()
    assert any("rejected" in line for lines in by_twins for line in lines)
    if INTERPRETED:
        asked = 0

        def runs_on(tensor: Tensor) -> bool:
            nonlocal asked
            asked += 1
            return True

        monkeypatch.setattr("rsd_kernels.ops.runs_on", runs_on)
        assert told() == by_twins
        assert asked > 50


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("page_table", (0, 1, 0), 99, r"page_table\[0, 1\]\[0\] is 99; allowed: 0 to 61"),
        ("page_table", (2, 0, 0), -1, r"page_table\[2, 0\]\[0\] is -1"),
        ("length", (1,), 97, r"length\[1\] is 97; allowed: 0 to 96"),
        ("kv_len", (1, 0), 50, r"kv_len\[TARGET\]\[0\] is 50"),
        ("guess_end", (1,), 97, r"guess_end\[1\] is 97; allowed: 0 to 96"),
        ("guess_stop", (0,), -1, r"guess_stop\[0\] is -1; allowed: 0 to 96"),
        ("guess_source", (2,), 3, r"guess_source\[2\] is 3; allowed: 0 to 2"),
        ("guess_rate", (0,), 65537, r"guess_rate\[0\] is 65537; allowed: 0 to 65536"),
        ("num_free", (0,), 63, r"num_free\[0\] is 63"),
    ],
)
def test_debug_mode_says_which_value_is_wrong(
    name: str, index: tuple[int, ...], value: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSD_DEBUG_KERNELS", "1")
    core = random_core(0)
    state = copied(core.state)
    state.num_pages.fill_(1)
    state.length.fill_(9)
    end_step_kernel.end_slot_step(state, 0, core.loop.tokens_per_page)
    getattr(state, name)[index] = value
    with pytest.raises(ValueError, match=message):
        end_step_kernel.end_slot_step(state, 0, core.loop.tokens_per_page)


def test_debug_mode_knows_contexts_that_are_not_in_the_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RSD_DEBUG_KERNELS", "1")
    core = random_core(0)
    state = copied(core.state)
    state.num_pages.fill_(1)
    state.length.fill_(9)
    state.kv_len[1, 0] = 50
    state.separate_contexts[0] = 1
    end_step_kernel.end_slot_step(state, 0, core.loop.tokens_per_page)
    state.kv_len[1, 0] = 97
    with pytest.raises(ValueError, match=r"kv_len\[TARGET\]\[0\] is 97; allowed: 0 to 96"):
        end_step_kernel.end_slot_step(state, 0, core.loop.tokens_per_page)
