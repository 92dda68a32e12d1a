"""The file of results: what it survives, and what it refuses to go on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rsd_engine.cli.errors import UsageError
from rsd_engine.cli.generate.questions import InputLine
from rsd_engine.cli.generate.results_file import ResultsFile

LINES = [InputLine(number, f'{{"prompt": "p{number}"}}'.encode()) for number in (1, 2, 4, 5)]


def filled(path: Path, order: tuple[int, ...], settings: str = "s") -> bytes:
    """A run that stopped after the results of `order`."""
    results = ResultsFile(path, settings, LINES)
    for position in order:
        results.append(LINES[position], {"text": "ü" * position})
    return path.read_bytes()


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["line"] for line in path.read_text().splitlines()]


def test_every_result_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    results = ResultsFile(path, "s", LINES)
    for count, line in enumerate(LINES, start=1):
        results.append(line, {"text": "a"})
        assert path.read_text().count("\n") == count


def test_goes_on_and_ends_in_the_order_of_the_input(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    filled(path, (3, 0))
    results = ResultsFile(path, "s", LINES)
    assert results.done == {5, 1}
    results.append(LINES[2], {"text": "x"})
    results.append(LINES[1], {"text": "y"})
    results.close()
    assert numbers(path) == [1, 2, 4, 5]
    assert ResultsFile(path, "s", LINES).done == {1, 2, 4, 5}
    assert [item.name for item in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize("cut", [1, 2, 9, 10, 40])
def test_a_torn_last_line_is_dropped(
    tmp_path: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.jsonl"
    whole = filled(path, (0, 1))
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + cut])
    results = ResultsFile(path, "s", LINES)
    assert results.done == {1}
    assert path.read_bytes() == whole[:first]
    assert "the last line was cut off" in capsys.readouterr().err
    results.append(LINES[1], {"text": "ü"})
    assert path.read_bytes() == whole


def test_failed_lines_are_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    results = ResultsFile(path, "s", LINES)
    results.append(LINES[0], {"error": "not JSON"})
    results.append(LINES[1], {"text": "a"})
    results.close()
    repaired = [InputLine(1, b'{"prompt": "now JSON"}'), *LINES[1:]]
    assert ResultsFile(path, "s", repaired).done == {2}
    assert numbers(path) == [2]


def test_a_changed_input_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    before = filled(path, (0, 1))
    changed = [LINES[0], InputLine(2, b'{"prompt": "other"}')]
    with pytest.raises(UsageError, match="line 2 of the input has changed since .*r.jsonl"):
        ResultsFile(path, "s", changed)
    with pytest.raises(UsageError, match="line 2 of the input has changed"):
        ResultsFile(path, "s", LINES[:1])
    assert path.read_bytes() == before


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    before = filled(path, (0,))
    with pytest.raises(UsageError, match="written with other models or settings"):
        ResultsFile(path, "t", LINES)
    assert path.read_bytes() == before
    assert ResultsFile(path, "t", LINES, overwrite=True).done == frozenset()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("text", ['{"prompt": "a"}\n', "notes", "notes\nmore\n", "\n", "[1]\n"])
def test_foreign_files_are_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"line 1, is not a result .*--overwrite"):
        ResultsFile(path, "s", LINES)
    assert path.read_text() == text


def test_half_a_surrogate_pair_stays_json(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    results = ResultsFile(path, "s", LINES)
    results.append(LINES[0], {"id": "\ud800é", "text": ""})
    assert json.loads(path.read_text())["id"] == "\ud800é"
