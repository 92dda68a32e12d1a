"""Races of the Triton kernels, found in the interpreter."""

from __future__ import annotations

import pytest

from tests.kernels.harness.child import run_checks

pytest.importorskip("triton")


FOLDER = "kernels/interpreter"


@pytest.mark.parametrize("name", [f"{FOLDER}/race_checks.py", f"{FOLDER}/race_rule_checks.py"])
def test_in_the_interpreter(name: str) -> None:
    run_checks(name, interpreted=True)
