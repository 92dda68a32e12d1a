"""The table and the JSON line every benchmark ends with."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from bench.lib import report


def test_table_aligns_its_columns() -> None:
    table = report.format_table(("what", "tok/s"), [("a", "1.0"), ("longer", "123.4")])
    assert table.splitlines() == [
        "what    tok/s",
        "------  -----",
        "a         1.0",
        "longer  123.4",
    ]


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="a row has 1 cells for 2 headers"):
        report.format_table(("a", "b"), [("1",)])


def test_json_line_is_valid_and_says_where_it_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[Any, Any] = {"a": math.nan, "b": [1.23456789, math.inf], 3: {"c": None}}
    report.print_json(values)
    [line] = capsys.readouterr().out.splitlines()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["a"] is None
    assert found["b"] == [1.23457, None]
    assert found["3"] == {"c": None}
    assert set(found["machine"]) == {"device", "threads", "python", "versions", "commit"}
    assert found["machine"]["device"]
    assert "torch" in found["machine"]["versions"]
