"""All executors and the paper's arrangement in one run: the whole in tiny, and its parts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from bench.gpu.bars import LOOP
from bench.lib.play import fill_pages, play
from bench.lib.random_models import TRIPLES
from bench.lib.scenes import Scene, scene_of
from bench.lib.timing import Mismatch, Timing
from bench.loop import device_loop, device_loop_bench
from bench.loop.baseline import character_tokenizer, ids_of, text_of
from bench.loop.device_loop_bench import REJECTED
from bench.loop.device_loop_report import LoopPoint, bar_lines, judge
from bench.loop.lone_passes import LonePass, Replayer, Snapshot
from bench.loop.runs import Run, TimeBudget, kept_drafts, run_scene, using
from rsd_engine import Engine
from rsd_engine.loop.executors.eager import EagerExecutor
from rsd_engine.loop.rsd import build_program
from rsd_kernels.state.enums import Role

SCENE = Scene("rsd", 0.5, slots=1, context=20, step_tokens=3, steps=4)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(
        *TRIPLES["tiny"].checkpoints(torch.device("cpu"), None, 512), device="cpu",
        executor="simulated-loop", max_num_seqs=2, max_model_len=128, step_delimiters=None,
    ) as made:  # fmt: skip
        fill_pages(made)
        yield made


def test_the_whole_in_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    device_loop.main(["--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    gates = [line for line in lines if line.startswith("gate passed: ")]
    assert len(gates) == 2  # executors among themselves, and the paper's arrangement with them
    found: dict[str, Any] = json.loads(lines[-1])
    assert found["judged"] == "simulated-loop"
    assert [(s["slots"], s["rejected"]) for s in found["shares"]] == [
        (1, 0.2), (1, 0.0), (1, 0.4), (1, 1.0), (2, 0.2)
    ]  # fmt: skip
    for share in found["shares"]:
        assert list(share["executors"]) == ["simulated-loop", "eager"]
        for figures in share["executors"].values():
            assert figures["seconds_a_step"] > 0 and 0 < figures["idle_share"] < 1
            assert figures["launches_a_step"] > 0 and figures["times_limit"] > 0
    for share in found["shares"][:4]:
        assert share["times_faster_than_baseline"] > 0
        drafts = sum(p["count"] for p in share["passes"] if p["role"] == "draft")
        assert drafts == 20  # a pass a token, whatever is rejected
    assert all(entry["launches"] > 1 and entry["seconds"] > 0 for entry in found["returns"])
    assert set(found["bars"]) == set(LOOP)
    assert not found["skipped"] and "driver" in found and found["machine"]["device"]


def test_what_fails_does_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever is stopped after the bars' figures has told them."""

    def replayer(*_: Any) -> None:
        raise RuntimeError("no graph")

    def returns(*_: Any) -> None:
        raise Mismatch("nothing returned")

    monkeypatch.setattr(device_loop_bench, "Replayer", replayer)
    monkeypatch.setattr(device_loop_bench, "count_returns", returns)
    with pytest.raises(SystemExit, match="2 failed, the first: passes alone: RuntimeError: no gr"):
        device_loop.main(["--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    early, *_, late = [json.loads(line) for line in lines if line.startswith("{")]
    for found in (early, late):
        passed = {name: entry["passed"] for name, entry in found["bars"].items()}
        assert passed.pop("times_passes_alone") is None
        assert None not in passed.values() and len(passed) == len(LOOP) - 1
    assert len(early["shares"]) == len(REJECTED) < len(late["shares"])
    assert late["failed"][1] == "returns: Mismatch: nothing returned"


def test_without_time_nothing_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    device_loop.main(["--dry-run", "--budget", "0"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["shares"] == found["returns"] == []
    assert found["skipped"]["returns, eager, 2 slots"] == 1
    assert all(entry["passed"] is None for entry in found["bars"].values())


def test_the_gate_stops_an_executor_that_decides_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = []

    def other(*arguments: Any, **options: Any) -> Any:
        found = play(*arguments, **options)
        played.append(found)
        if len(played) == 2:
            found.rewards[0][0] = -1.0
        return found

    monkeypatch.setattr(device_loop_bench, "play", other)
    timed = partial(pytest.fail, "timed despite the gate")
    monkeypatch.setattr(device_loop_bench, "run_scene", lambda *_: timed())
    with pytest.raises(Mismatch, match="eager decides otherwise in its first run"):
        device_loop.main(["--dry-run"])


def test_passes_are_counted_and_replayed_from_their_own_state(engine: Engine) -> None:
    loop = engine.parts.core.loop
    scene = scene_of(SCENE, 0.5)
    replayer = Replayer(loop)
    for _ in range(2):  # counted anew
        run, played = run_scene(engine, replayer.counting_executor(16), scene)
    counted = replayer.counted
    assert run.rejected == 0.5 and kept_drafts(played).count(False) == 2
    buckets = loop.state.row_buckets.tolist()
    by_role = dict.fromkeys(Role, 0)
    for body, count in counted.counts.items():
        if body < 3 * len(buckets):
            by_role[Role(body // len(buckets))] += count
    assert by_role[Role.DRAFT] == 12 and by_role[Role.TARGET] == 6
    assert {role: float(count) for role, count in by_role.items()} == played.passes
    before = Snapshot(loop)
    passes = replayer.time(runs=2)
    assert {(p.role, p.rows): p.count for p in passes} == {
        (Role(body // len(buckets)).name.lower(), buckets[body % len(buckets)]): count
        for body, count in counted.counts.items()
        if body < 3 * len(buckets)
    }
    assert all(len(p.alone.seconds) == 2 and p.alone.median > 0 for p in passes)
    for place, kept in before.copies:
        assert torch.equal(place, kept)
    assert play(engine, scene).kept == 2  # and the engine goes on


def test_an_executor_is_put_back(engine: Engine) -> None:
    core = engine.parts.core
    before = core.executor, core.ticks_per_launch
    counted = EagerExecutor(build_program(core.loop), ticks_per_launch=5)
    with pytest.raises(KeyError), using(core, counted):
        assert (core.executor, core.ticks_per_launch) == (counted, 5)
        raise KeyError
    assert (core.executor, core.ticks_per_launch) == before


@pytest.mark.parametrize("rejected", REJECTED)
def test_seeds_give_the_share(engine: Engine, rejected: float) -> None:
    scene = scene_of(Scene("rsd", 1.0, 1, 20, 2, 5), rejected)
    assert play(engine, scene).rejected == round(5 * rejected)
    with pytest.raises(ValueError, match="rejected must be a share"):
        scene_of(SCENE, -0.5)


def test_characters_stand_for_ids() -> None:
    tokenizer = character_tokenizer(300)
    ids = [5, 0, 1, 299, 5, 2]
    assert tokenizer(text_of(ids), add_special_tokens=False)["input_ids"] == ids
    text = tokenizer.decode(ids)
    assert isinstance(text, str) and ids_of(text) == ids
    assert len(tokenizer) == 300


def test_a_time_budget() -> None:
    budget = TimeBudget(0.3)
    assert budget.run("short", lambda: 1) == 1
    budget.run("long", lambda: time.sleep(0.2))
    assert budget.run("long", lambda: pytest.fail("there is no time for it")) is None
    assert budget.run("short", lambda: 2) == 2
    assert budget.skipped == {"long": 1}


def test_bars_by_hand() -> None:
    point = LoopPoint(SCENE, least=0.5)
    for seconds in (1.0, 2.0, 3.0):
        point.add("loop", Run(seconds, launches=0.25, ticks=9, idle=0.01, rejected=0.5))
    point.passes = [
        LonePass("draft", 1, 12, Timing((0.5,))), LonePass("prm", 4, 4, Timing((0.25, 0.5, 0.9)))
    ]  # fmt: skip
    point.baseline, point.ours = [9.0, 12.0, 15.0], [2.0]
    assert point.passes_alone == (12 * 0.5 + 4 * 0.5) / 4
    figures = point.figures("loop")
    assert (figures["times_passes_alone"], figures["times_limit"]) == (1.0, 4.0)
    assert point.times_faster == 6.0
    judged = judge([point], "loop")
    assert {name: entry["passed"] for name, entry in judged.items()} == {
        "launches_a_step": False, "idle_share": True, "times_passes_alone": True,
        "times_faster_than_baseline": True,
    }  # fmt: skip
    assert bar_lines(judged)[0] == "launches_a_step: at most 0.125, worst 0.25, missed"
    point.ours = [3.0]
    assert judge([point], "loop")["times_faster_than_baseline"]["passed"] is False
    assert judge([], "loop")["idle_share"] == {"bar": 0.02, "worst": None, "passed": None}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        device_loop.main([])
    assert "there is no CUDA device here" in capsys.readouterr().err
