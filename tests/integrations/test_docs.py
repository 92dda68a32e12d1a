"""What the documents of the integrations show is what happens."""

from __future__ import annotations

from typing import Any

import pytest

from tests.docs.documents import Document, document


def run_programs(shown: Document) -> None:
    """All blocks, one after the other, in one process."""
    names: dict[str, Any] = {}
    for number, code in enumerate(shown.blocks("python")):
        exec(compile(code, f"{shown.name}, block {number}", "exec"), names)


def test_lm_eval(capsys: pytest.CaptureFixture[str]) -> None:
    run_programs(document("docs/lm_eval.md"))
    accuracy, _ = capsys.readouterr().out.split("\n", 1)
    assert float(accuracy) >= 0.5
