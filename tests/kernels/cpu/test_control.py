"""The loop ops of the CPU library against their twins, bit for bit: the states of whole runs."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch

from rsd_kernels import ops
from rsd_kernels.bridge import twin as bridge_twin
from rsd_kernels.cpu import control
from rsd_kernels.cpu import library as native
from rsd_kernels.cpu.build import LIBRARY
from rsd_kernels.fork import twin as fork_twin
from rsd_kernels.guess import twin as guess_twin
from rsd_kernels.policy import formula
from rsd_kernels.policy.formula import PolicyKind
from rsd_kernels.retokenise import twin as retokenise_twin
from rsd_kernels.reward import loop_twin as score_twin
from rsd_kernels.rollback.twin import truncate_kv
from rsd_kernels.sample import twin as sample_twin
from rsd_kernels.schedule import rules
from rsd_kernels.schedule import twin as schedule_twin
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state import args, enums, tables
from rsd_kernels.state.enums import NUM_ROLES, ConfidenceKind, Finish, Mode, Phase, Role
from rsd_kernels.state.rows import RowBatch
from rsd_kernels.state.slots import SlotState
from rsd_kernels.write import twin as write_twin
from tests.kernels.bridge.texts import (
    SLOTS,
    a_state,
    around_steps,
    logits_of,
    restart_ended,
    token_stream,
    two_for_one,
)
from tests.kernels.harness.forks import put_forks
from tests.kernels.harness.places import one_place_each
from tests.kernels.harness.shadow import (
    Op,
    Shadow,
    copied_on_cpu,
    differences,
    make_rare,
    random_core,
    random_requests,
    run_shadowed,
)
from tests.kernels.harness.slots import PER_PAGE
from tests.kernels.retokenise.contexts import kept, written
from tests.loop import toy
from tests.steps.test_prm_tokens import FAMILIES

TWINS: dict[str, Op] = {
    "guess": guess_twin.guess,
    "schedule": schedule_twin.schedule,
    "write": write_twin.write,
}


@pytest.fixture(autouse=True)
def _needs_the_library() -> None:
    if native.load() is None:
        pytest.skip(f"the CPU library is {native.status()}")


@pytest.mark.parametrize("max_guesses", [0, 11])
@pytest.mark.parametrize("seed", range(6))
def test_every_state_of_a_run(seed: int, max_guesses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow = Shadow(monkeypatch, {}, on_cpu=True)
    decide = shadow.both("decide", control.decide, score_twin.decide)
    monkeypatch.setattr(score_twin, "decide", decide)
    calls = run_shadowed(monkeypatch, TWINS, seed, count=8, max_guesses=max_guesses, on_cpu=True)
    assert min(calls[name] for name in TWINS if name != "guess") > 10, calls
    assert shadow.calls["decide"] and bool(calls["guess"]) == bool(max_guesses)


@pytest.mark.parametrize("seed", range(3))
def test_states_with_forks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared pages, candidates and prompts that are only read, put into the states of a run."""
    prm_kv = random_core(seed).loop.prm_kv
    change = partial(put_forks, rng=random.Random(seed), per_page=PER_PAGE, prm_kv=prm_kv)
    shadow = Shadow(monkeypatch, TWINS, on_cpu=True, change=change)
    decide = shadow.both("decide", control.decide, score_twin.decide)
    monkeypatch.setattr(score_twin, "decide", decide)
    toy.run(random_core(seed), random_requests(seed, 20))
    assert min(shadow.calls[name] for name in [*TWINS, "decide"] if name != "guess") > 10
    assert min(shadow.seen.values()) > 1 and len(shadow.seen) == 6, shadow.seen


def test_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of slots of a run, with and without free pages for what cannot be shared."""
    rng, as_read = random.Random(0), Counter[bool]()

    def schedule(state: SlotState, *args: Any) -> None:
        ours = copied_on_cpu(state)
        put_forks(ours, rng, PER_PAGE)
        source, *targets = rng.sample(range(ours.num_slots), rng.randint(2, 5))
        for target in targets:
            truncate_kv(ours, target, (0, 0, 0), PER_PAGE)
        if rng.random() < 0.4:
            ours.num_free.fill_(rng.randint(0, 3))
        for column in (ours.tokens, ours.prm_tokens, ours.token_rank, ours.top_token):
            column.random_(toy.NUM_IDS)
        ours.guess_end.copy_(ours.length + rng.randint(-1, 3))
        pages = torch.randint(256, (ours.free_pages.shape[0], 512), dtype=torch.uint8)
        theirs, their_pages = copied_on_cpu(ours), pages.clone()
        fork_twin.fork(ours, pages, source, targets, PER_PAGE)
        control.fork(theirs, their_pages, source, targets, PER_PAGE)
        wrong = differences(ours, theirs)
        if wrong or not torch.equal(pages, their_pages):
            pytest.fail(f"{wrong} or pages differ")
        for target in targets:
            as_read.update((ours.kv_len[:, target] == ours.kv_len[:, source]).tolist())
        schedule_twin.schedule(state, *args)

    monkeypatch.setattr(ops, "schedule", schedule)
    toy.run(random_core(0), random_requests(0, 20))
    assert min(as_read.values()) > 10, as_read


@pytest.mark.parametrize("seed", range(4))
def test_two_vocabularies(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = run_shadowed(monkeypatch, TWINS, seed, two=True, on_cpu=True)
    assert min(calls[name] for name in TWINS if name != "guess") > 10, calls


@pytest.mark.parametrize("kind", [ConfidenceKind.LOGPROB, ConfidenceKind.ENTROPY])
def test_confidence(kind: ConfidenceKind, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = run_shadowed(monkeypatch, TWINS, 4, count=4, confidence=kind, on_cpu=True)
    assert min(calls[name] for name in TWINS if name != "guess") > 10, calls


def test_full_prm_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that end there, and outputs that draft or target continue."""
    shadow = Shadow(monkeypatch, TWINS, on_cpu=True)
    requests = [
        replace(
            toy.toy_request("abc", temperature=1.0, seed=i + 5, max_tokens=24, max_step_tokens=5),
            overflow_mode=mode,
        )
        for i, mode in enumerate([*Mode] * 4)
    ]
    events = toy.run(random_core(3, prm_max_len=14), requests)
    ends = Counter(line for found in events.values() for line in toy.story(found)[-1:])
    assert ends["done: PRM_FULL"] and len(ends) > 1, ends
    assert shadow.calls["write"] > 20


@pytest.mark.parametrize("rule", BatchingRule)
def test_schedule_in_changed_states(rule: BatchingRule, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, chosen = random.Random(0), Counter[int]()
    schedule_of_the_run = schedule_twin.schedule

    def schedule(
        state: SlotState, batch: RowBatch, per_page: Any, _: BatchingRule, prm_kv: Role
    ) -> None:
        ours, rows = copied_on_cpu(state), copied_on_cpu(batch)
        put_forks(ours, rng, PER_PAGE, prm_kv)
        make_rare(ours, rng)
        theirs, their_rows = copied_on_cpu(ours), copied_on_cpu(rows)
        schedule_twin.schedule(ours, rows, per_page, rule, prm_kv)
        control.schedule(theirs, their_rows, per_page, rule, prm_kv)
        wrong = differences(ours, theirs) + differences(rows, their_rows)
        if wrong:
            pytest.fail(f"{wrong} differ")
        chosen[int(ours.pass_role)] += 1
        schedule_of_the_run(state, batch, per_page, rule, prm_kv)

    monkeypatch.setattr(ops, "schedule", schedule)
    toy.run(random_core(6, num_slots=17, max_rows=7), random_requests(6, 12))
    assert min(chosen[role] for role in range(NUM_ROLES + 1)) > 1, chosen


@pytest.mark.parametrize(("name", "prm_max_len"), [("qwen", 300), ("math", 300), ("smollm", 25)])
def test_steps_of_text(name: str, prm_max_len: int) -> None:
    """Tokens that run past delimiters, words that are merged again, a PRM without room."""
    made, rng = FAMILIES[name], random.Random(name)
    assert made.merges is not None
    state = a_state(made, rng, prm_max_len)
    streams = [token_stream(made, rng) for _ in range(SLOTS)]
    tables = around_steps(two_for_one(made.tables)) if name == "math" else made.tables
    finishes = set()
    for turn in range(200):
        batch = RowBatch.allocate(SLOTS, SLOTS, state.length.device)
        batch.seq_slot.copy_(torch.tensor(rng.sample(range(SLOTS), SLOTS)))
        batch.seq_complete.fill_(1)
        state.num_seqs.fill_(SLOTS)
        one_place_each(state, batch)
        theirs, their_rows = copied_on_cpu(state), copied_on_cpu(batch)
        drawn = [next(streams[b]) for b in batch.seq_slot.tolist()]
        logits = logits_of(drawn, made.vocabulary.num_tokens)
        sample_twin.sample_append(state, batch, logits.clone(), tables, Role.DRAFT)
        control.sample_append(theirs, their_rows, logits, tables, Role.DRAFT)
        assert not differences(state, theirs) + differences(batch, their_rows), turn
        bridged = tables if turn % 3 else replace(tables, as_written=1)
        bridge_twin.bridge(state, bridged, made.merges)
        control.bridge(theirs, bridged, made.merges)
        assert not differences(state, theirs), turn
        finishes |= set(state.finish.tolist())
        restart_ended(state)
    assert {Finish.ERROR, Finish.STOP_STRING} <= finishes
    assert (Finish.PRM_FULL in finishes) == (prm_max_len == 25)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_ends_of_kept_steps(name: str) -> None:
    """With and without room for a longer end; some have nothing to settle."""
    made, rng = FAMILIES[name], random.Random(1)
    contexts = [written(made, rng) for _ in range(300)]
    state = kept([(tokens, first) for tokens, first in contexts if first < len(tokens)])
    room = torch.tensor([rng.choice([0, 1, 9]) for _ in range(state.num_slots)])
    state.length_limit.copy_(state.length + room)
    state.shortened.random_(-2, 3, generator=torch.Generator().manual_seed(0))
    state.mode[3] = Mode.TARGET
    state.phase[5] = Phase.SCORE
    state.phase[10:20] = Phase.CHOICE
    state.kept_from[7] = -1
    state.committed[9] -= 1
    theirs, before = copied_on_cpu(state), copied_on_cpu(state)
    retokenise_twin.retokenise(state, made.tables, made.merges)
    control.retokenise(theirs, made.tables, made.merges)
    assert not differences(state, theirs)
    assert bool((state.phase == Phase.WAIT_HOST).any())
    assert name not in ("qwen", "math") or bool((state.length < before.length).any())


@pytest.mark.parametrize("kind", PolicyKind)
def test_who_accepts(kind: PolicyKind) -> None:
    """At the edges of each policy, where one bit of a reward decides."""
    rewards = torch.tensor([0.0, -0.0, 0.3, 0.7, 1.0, 1.5, -2.0, math.inf, -math.inf, math.nan])
    edges = [*rewards, *torch.nextafter(rewards, torch.tensor(2.0)), *torch.rand(180)]
    core = random_core(0, num_slots=len(edges))
    state, batch = core.state, RowBatch.allocate(8, len(edges), torch.device("cpu"))
    state.policy_kind.fill_(kind)
    state.policy_a.copy_(torch.tensor([0.7, 5.0, -800.0, 1.0, 0.0] * (len(edges) // 5)))
    state.policy_b.fill_(0.5)
    state.seed.copy_(torch.arange(len(edges)))
    batch.seq_slot.copy_(torch.arange(len(edges)))
    batch.seq_complete.fill_(1)
    state.num_seqs.fill_(len(edges))
    theirs = copied_on_cpu(state)
    score_twin.decide(state, batch, torch.stack(edges), (3, 2, 5))
    control.decide(theirs, batch, torch.stack(edges), (3, 2, 5))
    assert not differences(state, theirs)
    assert int(state.nan_rewards.sum()) == 2
    assert kind == PolicyKind.CLIP or len(set(state.num_steps.tolist())) == 2


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("RsdSlots", args.StateArgs._fields),
        ("RsdBatch", args.BatchArgs._fields),
        ("RsdTables", args.TableArgs._fields),
        ("RsdMerges", args.MergeArgs._fields),
    ],
)
def test_the_header_has_the_columns_in_their_order(name: str, members: tuple[str, ...]) -> None:
    body = re.search(rf"typedef struct {{([^}}]*)}} {name};", source("columns.h"))
    assert body is not None
    declared = re.findall(r"^ *(?:const )?(\w+?)_t ?([^;]*);|^ *float\* (\w+);", body[1], re.M)
    found = [x.strip("* ") for _, names, real in declared for x in (names or real).split(",")]
    assert tuple(found) == members


def test_the_header_has_the_dtypes_of_the_state() -> None:
    dtypes = {"int16_t": torch.int16, "int32_t": torch.int32, "int64_t": torch.int64,
              "float": torch.float32}  # fmt: skip
    state = random_core(0).state
    for column in fields(SlotState):
        declared = re.search(rf"^ *(\w+)\* {column.name};", source("columns.h"), re.M)
        assert declared is not None, column.name
        assert dtypes[declared[1]] == getattr(state, column.name).dtype, column.name


def test_the_header_has_the_numbers_of_the_enums() -> None:
    found = re.findall(r"namespace (\w+) {[^{]*{([^}]*)}", source("enums.h"))
    assert len(found) > 8
    for name, body in found:
        module = next(m for m in (enums, rules, formula) if hasattr(m, name))
        numbers = {key: int(number) for key, number in re.findall(r"(\w+) = (\d+)", body)}
        assert numbers == {k: int(v) for k, v in getattr(module, name).__members__.items()}, name


def test_the_header_has_the_constants() -> None:
    found = re.findall(r"constexpr int32_t (\w+) = (-?\d+);", source("enums.h"))
    assert len(found) > 20
    for name, number in found:
        module = next(m for m in (enums, tables, rules, guess_twin) if hasattr(m, name))
        assert getattr(module, name) == int(number), name


def source(name: str) -> str:
    """A header of the loop ops."""
    folder = LIBRARY.source_folder()
    assert folder is not None
    return (folder / "control" / name).read_text()
