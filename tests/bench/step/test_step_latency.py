"""The parts of a step, the scenes behind them, and the whole benchmark in tiny."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.lib.play import fill_pages, play
from bench.lib.random_models import TRIPLES
from bench.lib.rates import matrix_rate, measure_device, memory_bytes
from bench.lib.scenes import Scene
from bench.lib.timing import Mismatch, Timing
from bench.step import latency
from bench.step.points import StepPoint
from bench.step.roofline import DRAFT, KEEP, MIXED, REJECT, SCENES, SCORE, TARGET, step_roofline
from rsd_engine import Engine
from rsd_engine.roofline.gpus import Device
from rsd_engine.roofline.rounds import Setting, Triple
from rsd_engine.roofline.shape import ModelShape
from rsd_engine.sampling_params import ModeName
from rsd_kernels.state.enums import Role
from tests.page_checks import check_integrity

CPU = torch.device("cpu")
SCENE = Scene("rsd", 0.5, slots=3, context=100, step_tokens=5, steps=3)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(
        *TRIPLES["tiny"].checkpoints(CPU, None, 512), device="cpu", executor="eager",
        max_num_seqs=3, max_model_len=192, step_delimiters=None, enable_prefix_caching=False,
    ) as made:  # fmt: skip
        fill_pages(made)
        yield made


def test_a_scene_does_what_it_says(engine: Engine) -> None:
    keep = play(engine, replace(SCENE, acceptance=1.0))
    assert (keep.kept, keep.rejected) == (9, 0)
    assert keep.passes[Role.DRAFT] == 15 and keep.passes[Role.PRM] == 3
    assert keep.passes[Role.TARGET] == 0
    reject = play(engine, replace(SCENE, acceptance=0.0))
    assert (reject.kept, reject.rejected) == (0, 9)
    assert reject.passes[Role.TARGET] == 15
    alone_modes: tuple[tuple[ModeName, Role], ...] = (
        ("draft", Role.DRAFT),
        ("target", Role.TARGET),
    )
    for mode, role in alone_modes:
        alone = play(engine, replace(SCENE, mode=mode))
        assert alone.passes == {r: 15 * (r == role) for r in Role}
        assert (alone.kept, alone.rejected) == (9 * (mode == "draft"), 0)
    mixed = play(engine, SCENE)
    assert mixed.kept + mixed.rejected == 9 and mixed.kept and mixed.rejected
    assert mixed.seconds > 0 and mixed.role_seconds[Role.PRM] > 0
    steps = [tokens for found in mixed.decisions.values() for *_, tokens in found]
    assert {len(tokens) for tokens in steps} == {5}


def test_prompts_are_read_or_not(engine: Engine) -> None:
    """Unread prompts cost no pass: the pages hold noise. Read ones decide the same every time."""
    read = play(engine, SCENE, real_prompts=True)
    unread = play(engine, SCENE)
    assert read.passes[Role.DRAFT] > unread.passes[Role.DRAFT] == 15
    assert play(engine, SCENE, real_prompts=True).decisions == read.decisions
    assert unread.decisions != read.decisions
    core = engine.parts.core
    check_integrity(core.state, core.loop.tokens_per_page)
    assert int(core.state.num_free) == core.state.free_pages.shape[0]


def test_a_scene_too_large_for_the_pool_is_said(engine: Engine) -> None:
    small = replace(SCENE, slots=1)
    core = engine.parts.core
    all_free = core.state.free_pages
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "pages_for_request", lambda request: all_free.shape[0] + 1)
        with pytest.raises(MemoryError, match="1 slots need .* KV pages, the pool has"):
            play(engine, small)


def point() -> StepPoint:
    seconds = {DRAFT: 1.0, TARGET: 5.0, KEEP: 1.75, REJECT: 7.25, MIXED: 4.0}
    return StepPoint(
        executor="eager", slots=2, context=10, step_tokens=20,
        scenes={name: Timing((value,)) for name, value in seconds.items()},
        score=Timing((0.5,)), acceptance=0.75, least=dict.fromkeys((*SCENES, SCORE), 0.5),
    )  # fmt: skip


def test_parts_by_hand() -> None:
    assert point().parts() == {
        "draft": 1.0,
        "score": 0.5,
        "decide": 0.25,
        "rewrite": 5.0,
        "roll back": 0.5,
        "catch up": 4.0 - 0.75 * 1.75 - 0.25 * 7.25,
    }
    assert point().tokens_per_second == 10
    assert point().multiples()[MIXED] == 8.0
    assert point().multiples()[SCORE] == 1.0
    assert json.loads(json.dumps(point().to_dict()))["parts"]["rewrite"] == 5.0


def test_roofline_by_hand() -> None:
    """0.1, 1 and 0.2 s a pass, bytes only; steps of 10 tokens."""
    shapes = [ModelShape(n, n, 0, 0, 0, 2) for n in (50, 500, 100)]
    setting = Setting(Device("x", 1e3, 1e12, 1), step_tokens=10)
    found = step_roofline(Triple(*shapes), setting, 0.75)
    assert found == pytest.approx(
        {DRAFT: 1.0, TARGET: 10.0, SCORE: 0.2, KEEP: 1.2, REJECT: 11.2, MIXED: 3.7}
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    latency.main(arguments)
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def test_the_whole_in_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    latency.main(["--dry-run", "--executors", "eager", "simulated-loop", "--slots", "2"])
    lines = capsys.readouterr().out.splitlines()
    ceiling = next(i for i, line in enumerate(lines) if line.startswith("measured: "))
    gates = [i for i, line in enumerate(lines) if line.startswith("gate passed: ")]
    assert ceiling < gates[0] < gates[1]
    found = json.loads(lines[-1])
    assert [p["executor"] for p in found["points"]] == ["eager", "simulated-loop"]
    for entry in found["points"]:
        assert (entry["slots"], entry["context"]) == (2, 48)
        assert set(entry["seconds_a_step"]) == set(SCENES)
        assert all(seconds > 0 for seconds in entry["seconds_a_step"].values())
        assert set(entry["limit_seconds"]) == set(entry["times_limit"]) == {*SCENES, SCORE}
        assert 0 <= entry["acceptance"] <= 1
    assert found["measured"]["bandwidth"] > 0 and found["measured"]["flops"] > 0
    assert found["machine"]["device"]


def test_a_budget_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "--dry-run", "--slots", "1", "2", "--runs", "1", "--budget", "0")
    assert len(found["points"]) == 1  # the first is always measured
    assert found["skipped"] == [
        {"executor": "eager", "slots": 2, "context": 48, "why": "the time is used up"}
    ]


def test_the_gate_stops_an_executor_that_decides_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = []

    def other(engine: Engine, scene: Scene, *, real_prompts: bool = False) -> Any:
        found = play(engine, scene, real_prompts=real_prompts)
        played.append(found)
        if len(played) > 2:
            found.decisions[0].pop()
        return found

    monkeypatch.setattr(latency, "play", other)
    monkeypatch.setattr(latency, "_point", lambda *_: pytest.fail("timed despite the gate"))
    monkeypatch.setattr(latency, "_measure", lambda *_: iter(()))
    with pytest.raises(Mismatch, match="simulated-loop decides otherwise than eager"):
        latency.main(["--dry-run", "--executors", "eager", "simulated-loop"])


@pytest.mark.parametrize(
    "arguments", [["--slots", "0"], ["--acceptance", "1.1"], ["--preset", "9b"], ["--steps", "x"]]
)
def test_wrong_use(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        latency.main(["--dry-run", *arguments])


def test_rates() -> None:
    found = measure_device(CPU, torch.float32, quick=True)
    assert found.bandwidth > 1e7 and found.flops > 1e7
    assert matrix_rate(CPU, torch.float32, size=64, runs=1) > 1e6
    assert memory_bytes(CPU) > 2**28
