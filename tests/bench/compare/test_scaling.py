"""The reward model reads each step once here, and everything again in the paper's arrangement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.compare import scaling
from bench.compare.scaling_curves import fit, fits, slopes_of
from bench.compare.scaling_work import BASELINE, OURS, Work, Writers, endless_draft
from bench.lib.timing import Mismatch


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Writers:
    return Writers(endless_draft(tmp_path_factory.mktemp("endless")), max_slots=2)


def test_endless_draft_writes_text_to_the_last(writers: Writers) -> None:
    work = Work((scaling.question_of(writers.tokenizer, 40),), 20, 8)
    [result] = writers.ours(work)
    assert all(step.text for step in result.outputs[0].steps)
    assert writers.tokenizer.eos_token_id not in result.outputs[0].token_ids


def test_linear_and_quadratic(writers: Writers) -> None:
    question = scaling.question_of(writers.tokenizer, 40)
    steps, length = (2, 4, 6, 8), 5
    read: dict[str, list[int]] = {OURS: [], BASELINE: []}
    for k in steps:
        for name, cost in writers.costs(Work((question,), k, length), runs=1).items():
            read[name].append(cost.prm_tokens)
    found = fits({"values": steps, "prm_tokens": read})
    # Cutting a text anywhere can change its tokens a little; the separator is one more.
    assert found["ours"].linear == pytest.approx(length + 1, rel=0.2)
    assert found["ours"].error <= 3
    assert abs(found["ours, quadratic"].quadratic) < 0.2
    assert found["baseline"].quadratic == pytest.approx((length + 1) / 2, rel=0.2)
    # The baseline's k scores read prompt + 1 step, prompt + 2 steps, ...
    total = 0
    for k, ours in zip(range(1, 9), _lengths(writers, question, length), strict=True):
        total += ours
        if k in steps:
            assert read[BASELINE][steps.index(k)] == pytest.approx(total, rel=0.05)


def _lengths(writers: Writers, question: str, length: int) -> list[int]:
    """What this engine's reward model has read after 1 to 8 steps."""
    return [
        writers.ours(Work((question,), k, length))[0].metrics.prm.tokens_read for k in range(1, 9)
    ]


def test_fit_finds_the_curve() -> None:
    steps = (1, 2, 3, 4, 5)
    line = fit(steps, [7 + 3 * k for k in steps], 1)
    assert (line.constant, line.linear, line.quadratic) == pytest.approx((7, 3, 0))
    assert line.error == pytest.approx(0, abs=1e-9)
    curve = fit(steps, [7 + 3 * k + 2 * k * k for k in steps], 2)
    assert (curve.constant, curve.linear, curve.quadratic) == pytest.approx((7, 3, 2))
    assert fit(steps, [k * k for k in steps], 1).error > 1
    assert str(curve).startswith("7 +3 x +2 x^2 (at most ")
    assert str(line).startswith("7 +3 x (at most ")


def test_slopes_are_in_milliseconds() -> None:
    figures = {"values": [1, 2, 4], "seconds": {"ours": [0.003, 0.005, 0.009]}}
    slope = slopes_of(figures, 1)["ours"]
    assert (slope.constant, slope.linear) == pytest.approx((1, 2))


def test_work_that_does_not_fit_is_refused(writers: Writers) -> None:
    """Prompt and answer are more than the context: no step is left out in silence."""
    work = Work((scaling.question_of(writers.tokenizer, 960),), 4, 32)
    with pytest.raises(Mismatch, match="in place of 4 of 32"):
        writers.ours(work)


def test_main(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(scaling, "STEPS", (1, 2, 3))
    monkeypatch.setattr(scaling, "SLOTS", (1, 2))
    monkeypatch.setattr(scaling, "CONTEXTS", (16, 32))
    monkeypatch.setattr(scaling, "STEP_LENGTHS", (2, 4))
    image = tmp_path / "scaling.svg"
    scaling.main(["--runs", "1", "--threads", "1", "--output", str(image)])
    out = capsys.readouterr().out
    assert "<svg" in image.read_text()
    assert "PRM tokens an answer of k steps: ours" in out
    found = json.loads(out.splitlines()[-1])
    for name, values in {
        "steps": [1, 2, 3], "slots": [1, 2], "context": [16, 32], "answer length": [8, 16]
    }.items():  # fmt: skip
        assert found[name]["values"] == values
        for figures in (found[name]["prm_tokens"], found[name]["seconds"]):
            assert set(figures) == {OURS, BASELINE}
            assert all(len(column) == len(values) for column in figures.values())
            assert all(figure > 0 for column in figures.values() for figure in column)
        slopes = found[name]["milliseconds"]
        assert set(slopes) == {OURS, BASELINE}
        assert f"ms by {name}: ours " in out
    # Three points lie on their parabola, two on their line.
    assert found["steps"]["milliseconds"][OURS]["error"] == pytest.approx(0, abs=1e-6)
    assert found["slots"]["milliseconds"][BASELINE]["quadratic"] == 0
    assert set(found["fits"]) == {"ours", "ours, quadratic", "baseline"}
