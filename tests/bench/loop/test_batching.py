"""The batching rules in one run: the whole in tiny, the gate, and the figures by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.lib.play import Played, play
from bench.lib.random_models import TRIPLES
from bench.lib.scenes import Scene, scene_of
from bench.lib.timing import Mismatch
from bench.loop import batching
from bench.loop.batching_gate import TIES, require_same_steps
from bench.loop.batching_report import BUSY, WHOLE, RulePoint, RuleRun, best_of, name_of, overall
from bench.loop.runs import Run, check_steps
from rsd_engine import Engine
from rsd_engine.core.events import StepDecided, TokenLogprobs
from rsd_kernels.schedule.rules import BatchingRule
from rsd_kernels.state.enums import Finish, RecordKind, Role

MOST_READY, EVERY_ROLE, LOCK_STEP = BatchingRule
NAMES = ["most-ready", "every-role", "lock-step"]
SCENE = Scene("rsd", 0.5, slots=3, context=20, step_tokens=6, steps=4, uneven=True)


def test_the_whole_in_tiny(capsys: pytest.CaptureFixture[str]) -> None:
    batching.main(["--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("gate passed: most-ready, every-role, lock-step write")
    assert "0 of 6 slots diverge" in lines[0]
    found: dict[str, Any] = json.loads(lines[-1])
    assert [point["slots"] for point in found["points"]] == [1, 1, 3, 3]
    for point in found["points"]:
        assert list(point["rules"]) == NAMES
        passes = {figures["passes_a_step"] for figures in point["rules"].values()}
        assert (len(passes) == 1) == (point["slots"] == 1)  # nothing to choose with one slot
        for figures in point["rules"].values():
            assert figures["tokens_per_second"] > 0 and figures["busy_tokens_per_second"] > 0
            assert figures["runs"] == 1 and figures["rows_a_pass"] > 1
    for part in (WHOLE, BUSY):
        assert list(found["times_most_ready"][part]) == NAMES
        assert found["times_most_ready"][part]["most-ready"] == 1.0
        assert found["best"][part] in NAMES
    assert not found["skipped"] and found["machine"]["device"]


def test_without_time_nothing_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    batching.main(["--dry-run", "--budget", "0"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["points"] == [] and found["best"] == {WHOLE: None, BUSY: None}
    assert found["skipped"] == {
        f"{slots} slots, {share} rejected": 1 for share in ("20%", "40%") for slots in (3, 1)
    }


def test_the_gate_comes_before_any_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []

    def other(*arguments: Any, **options: Any) -> Played:
        found = play(*arguments, **options)
        runs.append(found)
        if len(runs) == 3:
            found.steps[1][0] = replace(found.steps[1][0], reward=found.steps[1][0].reward + 0.01)
        return found

    monkeypatch.setattr(batching, "play", other)
    monkeypatch.setattr(batching, "run_scene", lambda *_: pytest.fail("timed despite the gate"))
    with pytest.raises(Mismatch, match="slot 1 by lock-step and by most-ready: reward 0"):
        batching.main(["--dry-run"])


def test_steps_of_uneven_slots() -> None:
    engine = Engine(
        *TRIPLES["tiny"].checkpoints(torch.device("cpu"), None, 256), device="cpu", max_num_seqs=3,
        max_model_len=SCENE.model_len, step_delimiters=None,
    )  # fmt: skip
    with engine:
        scene = scene_of(SCENE, 0.3)
        played = play(engine, replace(scene, logprobs=2), real_prompts=True)
        check_steps(played, scene)
        lengths = [scene.step_lengths(slot) for slot in range(3)]
        assert lengths == [[6] * 4, [4] * 6, [7, 7, 7, 3]]
        assert played.rejected == round(0.3 * scene.num_steps) == 4
        assert played.kept == 10
        assert 0 < played.busy_seconds <= played.seconds
        assert scene.tokens <= played.busy_tokens <= 3 * scene.tokens
        # Prompts, and every token that a model read to write or score the next.
        assert played.rows[Role.DRAFT] >= 3 * (scene.context + scene.tokens - 1)
        assert all(len(one.top) == 2 for one in played.steps[0][0].logprobs or ())
        with pytest.raises(Mismatch, match="slot 1 kept steps of"):
            check_steps(played, replace(scene, uneven=False))


def step(ids: str, reward: float = 0.5, top: str = "", gap: float = 0.0, **changes: Any) -> Any:
    """A step of one token a letter; `top`: the two best at each, `gap` apart."""
    pairs = top.split() or [letter + "z" for letter in ids]
    logprobs = tuple(
        TokenLogprobs(-1.0, 1, {ord(best): -1.0, ord(other): -1.0 - gap})
        for best, other in map(tuple, pairs)
    )
    made = StepDecided(
        0, RecordKind.KEPT, Role.DRAFT, reward, tuple(map(ord, ids)), Finish.NONE, logprobs
    )
    return replace(made, **changes)


def played(*steps: StepDecided) -> Played:
    return Played(0, 0, 0, {}, {}, {}, 0, 0, {0: list(steps)}, {}, {})


class TestGate:
    def parts(self, ours: list[Any], theirs: list[Any], tie: float = 0.1) -> int:
        return require_same_steps({"one": played(*ours), "two": played(*theirs)}, tie)

    def test_equal_steps_pass(self) -> None:
        unscored = step("cd", reward=math.nan, source=Role.TARGET)
        assert self.parts([step("ab"), unscored], [step("ab", reward=0.55), unscored]) == 0

    def test_a_tie_ends_the_comparison_of_tokens_and_rewards(self) -> None:
        ours = [step("ab", top="az bc", gap=0.05), step("dd", reward=0.1)]
        theirs = [step("ac", top="az cb", gap=0.08), step("ee", reward=0.9)]
        assert self.parts(ours, theirs) == 1
        with pytest.raises(Mismatch, match="slot 0 by two and by one: step 0"):
            self.parts(ours, theirs, tie=0.06)

    @pytest.mark.parametrize(
        ("ours", "theirs", "message"),
        [
            ([step("ab")], [step("ac")], "step 0 is"),
            ([step("ab", top="az bc")], [step("ac", top="az cd")], "step 0 is"),
            ([step("ab")], [step("ab", reward=0.7)], "reward 0 is 0.5 and 0.7"),
            ([step("ab")], [step("abc")], "step 0 is"),
            ([step("ab")], [step("ab", kind=RecordKind.REJECTED)], "KEPT.* and .*REJECTED"),
            ([step("ab")], [step("ab", source=Role.TARGET)], "TARGET"),
            ([step("ab")], [step("ab"), step("a")], "1 steps and 2"),
            (
                [step("b", top="bc"), step("a")],
                [step("c", top="cb"), step("a", kind=RecordKind.REJECTED)],
                "step 1 is",
            ),
        ],
    )
    def test_anything_else_is_an_error(
        self, ours: list[Any], theirs: list[Any], message: str
    ) -> None:
        with pytest.raises(Mismatch, match=message):
            self.parts(ours, theirs)

    def test_every_dtype_has_its_tie(self) -> None:
        assert TIES[torch.float32] < TIES[torch.float16] < TIES[torch.bfloat16]


class TestFigures:
    def test_of_a_run(self) -> None:
        scene = replace(SCENE, uneven=False)  # 12 steps, 72 tokens
        run = Run(seconds=9.0, launches=0.5, ticks=4.5, idle=0.0, rejected=0.25)
        done = replace(
            played(), seconds=144.0, busy_seconds=30.0, busy_tokens=20, rows={Role.DRAFT: 480}
        )
        assert RuleRun.of(scene, run, done) == RuleRun(2.0, 1.5, 4.0, 10.0, 0.25)

    def test_by_hand(self) -> None:
        first, second = RulePoint(SCENE), RulePoint(SCENE)
        for point, times in ((first, (1.0, 2.0, 0.5)), (second, (1.0, 8.0, 1.0))):
            for rule, seconds in zip(BatchingRule, times, strict=True):
                point.runs[rule] = [
                    RuleRun(seconds * factor, 3 * seconds, 6.0, 2.0, 0.1) for factor in (9, 1, 2)
                ]
        assert first.ratio(EVERY_ROLE) == 2.0 and first.figures(LOCK_STEP)["spread"] == 4.0
        assert first.figures(LOCK_STEP)["tokens_per_second"] == 1.0
        assert first.to_dict()["best"] == {WHOLE: "lock-step", BUSY: "lock-step"}
        assert second.to_dict()["best"][WHOLE] == "most-ready"
        means = overall([first, second], WHOLE)
        assert means == pytest.approx(
            {"most-ready": 1.0, "every-role": 4.0, "lock-step": math.sqrt(0.5)}
        )
        assert best_of(means) == "lock-step" and best_of({}) is None
        assert overall([], BUSY) == {}
        assert [name_of(rule) for rule in BatchingRule] == NAMES
        assert len(first.rows()) == 3
