"""Pictures: what they show, computed by hand, and that they are drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rsd_engine.evaluate.pictures import draw_pictures
from rsd_engine.evaluate.pictures.accuracy import FLOPS, SECONDS, make_series
from rsd_engine.evaluate.pictures.calibration import Bin, bins, calibration_error
from rsd_engine.evaluate.record import Counts, Question, Record, Sample, ScoredText, StepRecord
from rsd_engine.evaluate.summary import summarise

PNG = b"\x89PNG\r\n\x1a\n"


def answer(number: int, method: str, *, correct: bool, flops: int, **more: object) -> Record:
    record = Record(
        question=Question(f"q-{number}", f"Question {number}", "7", "file"),
        method=method,
        settings={},
        seed=0,
        text="7",
        found="7",
        correct=correct,
        finish_reason="stop",
        counts=Counts(flops_generated=flops),
        seconds=0.5,
    )
    return replace(record, **more)  # type: ignore[arg-type]


def rsd(number: int, threshold: float, flops: int) -> Record:
    steps = (
        StepRecord("a", "draft", 0.9),
        StepRecord("b", "target", None, ScoredText("c", 0.2)),
    )
    settings = {"threshold": threshold}
    return answer(number, "rsd", correct=True, flops=flops, settings=settings, steps=steps)


RECORDS = [
    *(answer(number, "target", correct=number < 3, flops=800) for number in range(4)),
    *(
        answer(
            number,
            "best@8:min",
            correct=number < 2,
            flops=160,
            settings={"n": 8, "aggregate": "min"},
            samples=(Sample("7", "7", True, 0.95), Sample("8", "8", False, 0.15)),
        )
        for number in range(4)
    ),
    *(
        rsd(number, threshold, flops)
        for threshold, flops in ((0.9, 404), (0.5, 300), (0.7, 400))
        for number in range(4)
    ),
]


def test_points_of_accuracy_against_cost() -> None:
    found = make_series(summarise(RECORDS), FLOPS)
    assert list(found) == ["target", "best@N:min", "rsd"]
    assert [(point.notes, point.cost, point.accuracy) for point in found["target"]] == [
        ((), 800.0, 75.0)
    ]
    assert [point.notes for point in found["best@N:min"]] == [("@8",)]
    # In the order of thresholds; two that would cover each other are one.
    assert [(point.notes, point.cost, point.accuracy) for point in found["rsd"]] == [
        (("0.5",), 300.0, 100.0),
        (("0.7", "0.9"), 400.0, 100.0),
    ]
    low = 100 * 4 / (4 + 1.959964**2)  # Wilson's interval of n of n is n / (n + z^2) to 1
    assert [point.low for point in found["rsd"]] == pytest.approx([low, low])
    assert [point.high for point in found["rsd"]] == pytest.approx([100, 100])
    assert make_series(summarise(RECORDS), SECONDS)["target"][0].cost == 0.5


def test_bins_of_a_calibration() -> None:
    judged = [(0.0, False), (0.04, True), (0.32, True), (1.0, True), (0.96, False), (0.98, True)]
    found = bins(judged)
    assert [(one.reward, one.share, one.count) for one in found] == [
        (pytest.approx(0.02), 0.5, 2),
        (0.32, 1.0, 1),
        (pytest.approx(0.98), pytest.approx(2 / 3), 3),
    ]
    assert all(one.low <= one.share <= one.high for one in found)
    error = (2 * 0.48 + 1 * 0.68 + 3 * (0.98 - 2 / 3)) / 6
    assert calibration_error(found) == pytest.approx(error)
    assert calibration_error([Bin(0.5, 0.5, 0.4, 0.6, 10)]) == 0


def test_pictures_are_drawn(tmp_path: Path) -> None:
    files = draw_pictures(RECORDS, tmp_path / "new" / "pictures")
    names = ["accuracy_flops", "accuracy_seconds", "rewards_rsd_0.9", "rewards_rsd_0.5",
             "rewards_rsd_0.7", "calibration"]  # fmt: skip
    assert [path.name for path in files] == [
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    ]
    assert all(path.read_bytes().startswith(PNG) for path in files[::2])
    pictures = {path.stem: path.read_text() for path in files[1::2]}
    assert "threshold 0.7" in pictures["rewards_rsd_0.7"]
    assert "kept (4)" in pictures["rewards_rsd_0.7"]
    assert "rejected (4)" in pictures["rewards_rsd_0.7"]
    assert "kept, in a right answer (4)" in pictures["rewards_rsd_0.7"]
    assert ">0.7\N{EN DASH}0.9<" in pictures["accuracy_flops"]
    # The step is the same at all three thresholds, and counts once for each question.
    assert "kept steps, by their answer (4;" in pictures["calibration"]
    # 8 answers, of 0.95 and 0.15: right at 0.95, wrong at 0.15.
    assert "lowest reward (8; mean error 0.100)" in pictures["calibration"]


def test_the_same_records_give_the_same_svg_and_no_rewards_no_picture(tmp_path: Path) -> None:
    records = [record for record in RECORDS if record.method == "target"]
    first, again = (draw_pictures(records, tmp_path / name) for name in ("one", "two"))
    assert [path.stem for path in first[::2]] == ["accuracy_flops", "accuracy_seconds"]
    assert [path.read_bytes() for path in first[1::2]] == [
        path.read_bytes() for path in again[1::2]
    ]
